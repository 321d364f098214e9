"""The layers in examples/, small: run against the reference, and beside their peers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clicase import Cli

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"gpt2_layer": {"hidden": 48, "heads": 3, "ffn": 88},
         "chatglm2_layer": {"hidden": 48, "heads": 6, "head_dim": 8, "ffn": 88},
         "gemma_layer": {"hidden": 48, "heads": 6, "head_dim": 8, "ffn": 88, "window": 6},
         "bert_layer": {"hidden": 48, "heads": 3, "ffn": 88}}
ROUNDED = {("gemma_layer", "bf16")}
"""Whose norms behind every part make values so large that their rounding shows."""


def arguments(name: str, dtype: str) -> list[str]:
    settings = [text for key, size in SIZES[name].items() for text in ("--set", f"{key}={size}")]
    return [str(EXAMPLES / f"{name}.py"), "--dtype", dtype, *settings]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", SIZES)
def test_run_and_bench(cli: Cli, here: Path, name: str, dtype: str) -> None:
    given = arguments(name, dtype)
    for lengths in (("--tokens", "5"), ("--tokens", "1", "--past", "9", "--batch", "2")):
        result = cli("run", *given, *lengths)
        assert result.code == 0, result
        assert " 0 of " in result.last or (name, dtype) in ROUNDED
    result = cli("bench", *given, "--tokens", "3", "--past", "4", "--vs", "eager", "--seconds",
                 "0.01", "--json", "times.json")
    assert result.code == 0, result
    report = json.loads((here / "times.json").read_text())
    assert [r["impl"] for r in report["results"]] == ["graphdsl", "eager"]


@pytest.mark.parametrize("name", SIZES)
def test_show_and_explain(cli: Cli, name: str) -> None:
    given = arguments(name, "bf16")
    assert "matmul_epilogue" in cli("show", *given, "--after", "epilogues").out
    result = cli("explain", *given)
    assert result.code == 0
    assert "MatmulPrologue" in result.out
