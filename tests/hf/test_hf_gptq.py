"""Models quantised with a text to go by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model, write_gguf

from graphdsl.cli import main
from graphdsl.hf.calibrate import calibrate
from graphdsl.hf.checkpoint import Checkpoint, open_checkpoint
from graphdsl.hf.gptq import gptq
from graphdsl.hf.gptq_folder import quantised_weights
from graphdsl.layer import trace
from graphdsl.quant import Quant, round_to_nearest

FORMATS = ["int4:32", "int4:32+offset", "int8", "int8:64", "int4:128+offset"]
TEXT = "What is gravity? The stop sign stops the stopper, and it never stops. " * 20


def correlated(rows: int, k: int) -> torch.Tensor:
    return torch.randn(rows, k) @ (torch.randn(k, k) * torch.rand(k) ** 3)


@pytest.mark.parametrize("text", FORMATS)
def test_errors_are_taken_up_by_the_columns_to_come(text: str) -> None:
    torch.manual_seed(0)
    quant, x, w = Quant.parse(text), correlated(1000, 128), torch.randn(24, 128)

    def error(gram: torch.Tensor) -> float:
        return float((x @ (gptq(w, gram, quant).dequantised() - w).T).square().sum())

    assert error(x.T @ x) < 0.95 * error(torch.eye(128))


@pytest.mark.parametrize("text", ["int4:32", "int8:64"])
def test_inputs_of_one_size_leave_rounding_to_nearest(text: str) -> None:
    torch.manual_seed(0)
    quant, w = Quant.parse(text), torch.randn(8, 64)
    found = gptq(w, torch.eye(64), quant).dequantised()
    nearest = round_to_nearest(w, quant).dequantised()
    assert float((found - w).square().sum()) <= 1.01 * float((nearest - w).square().sum())


def test_columns_that_are_always_0_and_groups_of_zeros_are_no_trouble() -> None:
    gram, w = torch.zeros(64, 64), torch.zeros(4, 64)
    w[0, 0] = 1
    made = gptq(w, gram, Quant(4, 32, True)).dequantised()
    assert torch.isfinite(made).all()
    assert float((made - w).abs().max()) < 1e-3


def folder_of(path: Path, tokenizer: Any, **changes: Any) -> Checkpoint:
    tiny_model(vocab_size=300, **changes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return open_checkpoint(path)


@pytest.mark.usefixtures("one_thread")
def test_rows_are_those_that_transformers_multiplies(tmp_path: Path, tokenizer: Any) -> None:
    checkpoint = folder_of(tmp_path / "model", tokenizer)
    texts = [torch.randint(0, 300, (1, 12)) for _ in range(3)]
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
        seen[str(checkpoint.settings.family.names[name])] = gram
        return weight

    graph = trace(checkpoint.settings.family.model(checkpoint.settings.family.config), "f32")
    calibrate(graph, checkpoint.param, texts, keep)
    model, wanted = tiny_model(vocab_size=300), dict[str, torch.Tensor]()

    def hook(name: str) -> Callable[..., None]:
        def add(module: Any, inputs: Any) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            wanted[name] = wanted.get(name, torch.zeros(())) + rows.T @ rows
        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.inference_mode():
        for ids in texts:
            model(ids)
    assert seen.keys() == wanted.keys()
    for name, gram in wanted.items():
        torch.testing.assert_close(seen[name], gram, rtol=1e-3, atol=1e-3)


def run(*args: object) -> int:
    return main(["quantize", *map(str, args)])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("text", ["int4:32+offset", "int8"])
def test_the_folder_holds_what_was_rounded(text: str, tmp_path: Path, tokenizer: Any,
                                           monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(tmp_path / "cache"))
    before = folder_of(tmp_path / "model", tokenizer)
    (tmp_path / "text").write_text(TEXT)
    out = tmp_path / "out"
    assert run(tmp_path / "model", "--text", tmp_path / "text", "--out", out, "--format", text,
               "--tokens", 128, "--window", 32) == 0
    assert capsys.readouterr().out == f"14 weights in {text}, by 128 tokens: {out}\n"
    after = open_checkpoint(out)
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"][:128])
    wanted = quantised_weights(before, Quant.parse(text), list(ids.reshape(4, 1, 32)), print)
    for name in before.names():
        found = after.tensor(name).float()
        if name in wanted:
            torch.testing.assert_close(found, wanted[name].dequantised(), rtol=0, atol=0)
        else:
            torch.testing.assert_close(found, before.tensor(name).half().float(), rtol=0, atol=0)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["bits"] == int(
        text[3])


@pytest.mark.usefixtures("one_thread")
def test_a_gguf_file_becomes_a_folder(tmp_path: Path, tokenizer: Any,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "model.gguf", tiny_model(vocab_size=300), tokenizer=tokenizer)
    (tmp_path / "text").write_text(TEXT)
    assert run(tmp_path / "model.gguf", "--text", tmp_path / "text", "--out", tmp_path / "out",
               "--format", "int4:32", "--tokens", 64, "--window", 32) == 0
    assert open_checkpoint(tmp_path / "out").settings.layers == 2


WRONG: list[tuple[list[str], str]] = [
    (["--format", "int5"], "--quantize int5: this is no format"),
    (["--window", "100000"], "--window 100000: the model takes at most 64 tokens"),
    (["--window", "64", "--tokens", "63"], "63 tokens, wanted at least 64"),
    (["--format", "int4:128", "--window", "32"], "no weight of it can be quantised to int4:128"),
    (["--text", "nowhere"], "--text nowhere: cannot be read"),
    (["--out", "."], "--out .: it is there already"),
    (["--out", "no/such/folder"], "there is no folder"),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("options", "message"), WRONG, ids=[w[1][:30] for w in WRONG])
def test_refused(options: list[str], message: str, tmp_path: Path, tokenizer: Any,
                 monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(tmp_path / "cache"))
    folder_of(tmp_path / "model", tokenizer)
    (tmp_path / "text").write_text(TEXT)
    before = sorted(tmp_path.iterdir())
    given = ["--text", tmp_path / "text", "--out", tmp_path / "out", *options]
    assert run(tmp_path / "model", *given) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
