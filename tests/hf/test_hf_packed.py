"""Folders that GPTQ or AWQ has quantised: linears are taken number for number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import edit_json, tiny_model
from packedcase import packed, write_packed
from safetensors.torch import load_file, save_file

from graphdsl.errors import GraphError
from graphdsl.hf.checkpoint import Checkpoint, open_checkpoint
from graphdsl.quant import Quant

Q = "model.layers.0.self_attn.q_proj."


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Another tensor by a name of the file, or none."""
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights | ({} if tensor is None else {name: tensor}), folder / "model.safetensors",
              {"format": "pt"})


def params(found: Checkpoint) -> dict[str, str]:
    """Our names of the packed weights, and theirs."""
    names = found.settings.family.names
    return {ours: str(name) for ours, name in names.items() if str(name).endswith("proj.weight")}


@pytest.mark.parametrize(("method", "bits", "symmetric", "config", "form"), [
    ("gptq", 4, True, {"sym": True}, "int4:32"),
    ("gptq", 4, False, {}, "int4:32+offset/f32"),
    ("gptq", 4, False, {"checkpoint_format": "gptq_v2"}, "int4:32+offset/f32"),
    ("gptq", 8, True, {}, "int8:32"),
    ("gptq", 8, False, {}, "int8:32+offset/f32"),
    ("awq", 4, False, {"version": "gemm"}, "int4:32+offset/f32"),
    ("awq", 4, True, {"version": "GEMM"}, "int4:32"),
])
def test_linears_are_what_they_stand_for(tmp_path: Path, method: str, bits: int, symmetric: bool,
                                         config: dict[str, Any], form: str) -> None:
    wanted = write_packed(tmp_path, method, bits, symmetric=symmetric, **config)
    found = open_checkpoint(tmp_path)
    assert len(params(found)) == len(wanted) == 14
    for ours, name in params(found).items():
        assert str(found.quant(ours)) == form
        assert torch.equal(found.param(ours), wanted[name])
        torch.testing.assert_close(found.quantised(ours).dequantised(), wanted[name], rtol=0,
                                   atol=1e-7)
    assert found.quant("embed") is None
    assert found.param("embed").shape == (99, 64)


def write_group(folder: Path, group: int) -> dict[str, torch.Tensor]:
    """As `write_packed`, with one linear alone in other groups."""
    wanted = write_packed(folder, "gptq", symmetric=True)
    parts, wanted[f"{Q}weight"] = packed(torch.zeros(64, 64), "gptq", 4, group, True)
    for part, tensor in parts.items():
        change(folder, f"{Q}{part}", tensor)
    return wanted


def test_one_group_a_row(tmp_path: Path) -> None:
    wanted = write_group(tmp_path, 64)
    found = open_checkpoint(tmp_path)
    assert found.quant("layers.0.wq") == Quant(4)
    assert torch.equal(found.quantised("layers.0.wq").dequantised(), wanted[f"{Q}weight"])


def test_scales_of_another_dtype(tmp_path: Path) -> None:
    """f16 holds no bf16 numbers that are as small."""
    write_packed(tmp_path, "gptq", symmetric=True)
    scales = torch.full((2, 64), 2.0 ** -40).bfloat16()
    change(tmp_path, f"{Q}scales", scales)
    found = open_checkpoint(tmp_path)
    assert str(found.quant("layers.0.wq")) == "int4:32/f32"
    assert torch.equal(found.quantised("layers.0.wq").dequantised(), found.param("layers.0.wq"))


def test_columns_in_an_order_of_their_own(tmp_path: Path) -> None:
    """They can be dequantised, but not taken as they are."""
    wanted = write_packed(tmp_path, "gptq")
    name = "model.layers.1.mlp.up_proj"
    weights = load_file(tmp_path / "model.safetensors")
    order = torch.randperm(64)
    change(tmp_path, f"{name}.g_idx", weights[f"{name}.g_idx"][order].contiguous())
    found = open_checkpoint(tmp_path)
    with pytest.raises(GraphError, match=r"up_proj.weight' lie in other groups than in a row "
                       r"\(act-order(.|\n)*--quantize none dequantises"):
        found.quant("layers.1.w_up")
    assert not torch.equal(found.param("layers.1.w_up"), wanted[f"{name}.weight"])
    assert found.param("layers.1.w_up").shape == (96, 64)


@pytest.mark.parametrize(("config", "message"), [
    ({"quant_method": "bitsandbytes"}, r"quantised \(bitsandbytes\); supported: gptq, awq"),
    ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits; supported: 4 or 8 bits"),
    ({"quant_method": "awq", "bits": 8}, "awq with 8 bits; supported: 4 bits"),
    ({"quant_method": "awq", "version": "gemv"}, "'version' is 'gemv'; supported: 'gemm'"),
    ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'checkpoint_format' is 'marlin'"),
])
def test_what_is_not_read(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write_packed(tmp_path, "gptq")
    edit_json(tmp_path / "config.json", quantization_config=config)
    with pytest.raises(GraphError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("name", "tensor", "message"), [
    ("scales", None, "'model.layers.0.self_attn.q_proj.scales' is missing"),
    ("scales", torch.ones(2, 63).half(), r"\[64, 64\], but its scales are \[2, 63\]"),
    ("qzeros", torch.zeros(2, 7, dtype=torch.int32), r"zero points \[2, 7\]; wanted: .*\[groups, "),
    ("g_idx", torch.zeros(5, dtype=torch.int32), r"g_idx' is \[5\] of 0 to 0; wanted: \[64\]"),
    ("g_idx", torch.full((64,), 2, dtype=torch.int32), r"2 to 2; wanted: \[64\] of 0 to 1"),
    ("qzeros", torch.full((2, 8), -1, dtype=torch.int32), r"stored as 15, which(.|\n)*gptq_v2"),
])
def test_damaged_linears(tmp_path: Path, name: str, tensor: torch.Tensor | None,
                         message: str) -> None:
    write_packed(tmp_path, "gptq")
    change(tmp_path, f"{Q}{name}", tensor)
    found = open_checkpoint(tmp_path)
    for read in (found.quant, found.param):
        with pytest.raises(GraphError, match=message):
            read("layers.0.wq")


def test_a_linear_of_another_size(tmp_path: Path) -> None:
    write_packed(tmp_path, "gptq")
    change(tmp_path, f"{Q}qweight", torch.zeros(4, 64, dtype=torch.int32))
    with pytest.raises(GraphError, match=r"q_proj.weight' has shape \[64, 32\]; wanted: \[64, 64"):
        open_checkpoint(tmp_path)


def test_config_without_packed_linears_is_a_model_of_floats(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    edit_json(tmp_path / "config.json", **config, quantization_config={"quant_method": "gptq"})
    found = open_checkpoint(tmp_path)
    assert not any(map(found.quant, found.settings.family.names))
