"""GGUF files: the same weights as the model they were made of, and every damage is one sentence."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from hf_tiny import LLAMA3, tiny_model, write_gguf
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from graphdsl.errors import GraphError
from graphdsl.hf.checkpoint import open_checkpoint
from graphdsl.hf.gguf_header import ArrayAt, read_header
from graphdsl.layer import trace
from graphdsl.ops.position import rope_frequencies
from graphdsl.reference import error_of, run


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    write_gguf(tmp_path / "m.gguf", model)
    found = open_checkpoint(tmp_path / "m.gguf")
    settings, config = found.settings, found.settings.family.config
    assert config.tied == tied
    assert (config.vocab, config.hidden, config.layers, config.ffn) == (99, 64, 2, 96)
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.theta, config.scaling, settings.max_positions) == (10000.0, (), 64)
    assert (settings.bos, settings.eos, settings.dtype) == (1, (2,), "f32")
    assert config.eps == pytest.approx(1e-6)
    wanted = model.state_dict()
    assert set(found.names()) == set(wanted) - ({"lm_head.weight"} if tied else set())
    for name in found.names():
        assert torch.equal(found.tensor(name), wanted[name]), name


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1])
def test_quantised(tmp_path: Path, kind: Kind) -> None:
    model = tiny_model()
    write_gguf(tmp_path / "m.gguf", model, kind)
    found = open_checkpoint(tmp_path / "m.gguf")
    for name, weight in model.state_dict().items():
        wanted = weight.numpy()
        if wanted.ndim == 2:
            wanted = dequantize(quantize(wanted, kind), kind)
        got = found.tensor(name)
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        assert np.array_equal(got.numpy(), wanted), name


def test_reading_needs_the_memory_of_one_weight_only(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model())
    found = open_checkpoint(tmp_path / "m.gguf")
    first, second = found.tensor("model.norm.weight"), found.tensor("model.norm.weight")
    first.zero_()
    assert second.abs().max() > 0
    assert torch.equal(found.tensor("model.norm.weight"), second)


def test_llama3_scaling_is_kept_as_factors(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=64, rope_parameters=LLAMA3
    )
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    factors = (plain / scaled).numpy()
    write_gguf(tmp_path / "m.gguf", tiny_model(), extra=[("rope_freqs.weight", factors)])
    found = open_checkpoint(tmp_path / "m.gguf")
    read = found.settings.family.config
    assert dict(read.scaling).keys() == {"rope_type", "factors"}
    frequencies = rope_frequencies.function(rotary_dim=16, theta=read.theta, scaling=read.scaling)
    torch.testing.assert_close(frequencies, scaled, rtol=1e-6, atol=0)


def test_a_model_with_factors_says_what_transformers_says(tmp_path: Path) -> None:
    model = tiny_model(rope_parameters=LLAMA3)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    write_gguf(tmp_path / "m.gguf", model, extra=[("rope_freqs.weight", factors)])
    found = open_checkpoint(tmp_path / "m.gguf")
    family = found.settings.family
    graph = trace(family.model(family.config))
    ids = torch.randint(0, 99, (1, 50))
    positions = torch.arange(50, dtype=torch.int32)[None]
    params = {name: found.param(name) for name in family.names}
    state = {v.name: torch.zeros(1, 50, 2, 16) for v in graph.state}
    logits = run(graph, [ids.int(), positions, positions], params, state)[0]
    with torch.no_grad():
        assert error_of(logits, model(ids).logits) < 1e-5


def test_linear_scaling_and_second_end_of_text(tmp_path: Path) -> None:
    fields: list[tuple[str, Any]] = [
        ("llama.rope.scaling.type", "linear"),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.rope.freq_base", 5e4),
        ("tokenizer.ggml.eot_token_id", 7),
    ]
    write_gguf(tmp_path / "m.gguf", tiny_model(), fields=fields)
    settings = open_checkpoint(tmp_path / "m.gguf").settings
    config = settings.family.config
    assert config.scaling == (("factor", 4.0), ("rope_type", "linear"))
    assert (config.theta, settings.eos) == (5e4, (2, 7))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            [("llama.rope.scaling.type", "yarn")],
            "rope scaling of type 'yarn'; supported: none, lin",
        ),
        ([("llama.rope.scaling.type", "linear")], "no 'llama.rope.scaling.factor'"),
        ([("llama.rope.scaling.type", 3)], "'llama.rope.scaling.type' is 3; wanted: a text"),
        ([("llama.rope.freq_base", "big")], "'llama.rope.freq_base' is 'big'; wanted: a number"),
        ([("llama.rope.freq_base", float("inf"))], "is inf; wanted: a finite number"),
        ([("llama.expert_count", 8)], "a mixture of experts"),
        ([("split.count", 2)], "one part of a model split over several files"),
        ([("llama.attention.key_length", 32)], "rope turns 16 of 32 elements"),
        ([("tokenizer.ggml.eot_token_id", 2.5)], "is 2.5; wanted: a whole number"),
        ([("general.alignment", 0)], "'general.alignment' is 0"),
    ],
)
def test_unsupported_metadata(tmp_path: Path, fields: Any, message: str) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(), fields=fields)
    with pytest.raises(GraphError, match=message) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert "m.gguf: " in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([("blk.0.attn_q.bias", np.zeros(64, np.float32))], "the model has biases"),
        ([("rope_freqs.weight", np.ones(5, np.float32))], "5 rope factors; wanted: 8"),
        ([("rope_freqs.weight", np.zeros(8, np.float32))], "a rope factor"),
        ([("rope_freqs.weight", np.ones((2, 8), np.float32))], "not a row of f32 numbers"),
        ([("other", np.zeros(4, np.int32))], "'other' is of a type that cannot be dequantised"),
    ],
)
def test_unsupported_tensors(tmp_path: Path, extra: Any, message: str) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(), extra=extra)
    with pytest.raises(GraphError, match=message):
        open_checkpoint(tmp_path / "m.gguf")


def test_another_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(), architecture="qwen2")
    with pytest.raises(GraphError, match="architecture is 'qwen2'; supported: llama"):
        open_checkpoint(tmp_path / "m.gguf")


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, tiny_model())
    data, end = whole.read_bytes(), read_header(whole).end
    cut = tmp_path / "cut.gguf"
    for size in [*range(4, end, 37), end, end + 40, len(data) // 2, len(data) - 600]:
        cut.write_bytes(data[:size])
        with pytest.raises(GraphError, match=r"cut.gguf: truncated GGUF.*\n  hint: copy"):
            open_checkpoint(cut)
    for size in (0, 3):
        cut.write_bytes(data[:size])
        with pytest.raises(GraphError, match="not a GGUF file"):
            open_checkpoint(cut)


def test_any_damaged_byte_of_the_header_is_survived(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, tiny_model(num_hidden_layers=1))
    data, end = whole.read_bytes(), read_header(whole).end
    path = tmp_path / "damaged.gguf"
    refused = 0
    for at in range(0, end, 7):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            open_checkpoint(path)
        except GraphError:
            refused += 1
    assert refused > end // 7 // 4


def test_other_files_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for start, message in [
        (b"PK\x03\x04", "not a GGUF file: it does not start with 'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1), "GGUF version 1; supported: 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3), r"\(a big-endian file\?\); supported: 2 and 3"),
    ]:
        path.write_bytes(start + bytes(100))
        with pytest.raises(GraphError, match=message):
            open_checkpoint(path)
    with pytest.raises(GraphError, match="no such file"):
        read_header(tmp_path / "missing.gguf")
    with pytest.raises(GraphError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.num_hidden_layers = 3
    write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(GraphError, match=r"'model.layers.2.input_layernorm.weight' is missing and"):
        open_checkpoint(tmp_path / "m.gguf")
    header = read_header(tmp_path / "m.gguf")
    assert not any(isinstance(value, ArrayAt) for value in header.fields.values())
