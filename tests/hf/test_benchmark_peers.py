"""What benchmarks/peers.py gives its peers, and what it makes of their figures."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from hf_tiny import tiny_model, write_gguf

from graphdsl.hf.gguf_weights import open_gguf
from graphdsl.reference import error_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WRONG = {"BF16": 4e-3, "Q8_0": 4e-3, "Q4_0": 0.1}
"""By how much a kind may change numbers, relative to the largest."""


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_files_of_other_kinds_say_the_same(benchmark_module: Any, tmp_path: Path) -> None:
    peers_gguf = benchmark_module("peers_gguf")
    source = tmp_path / "Tiny.F32.gguf"
    write_gguf(source, tiny_model())
    wanted = open_gguf(source)
    for kind, error in WRONG.items():
        made = peers_gguf.gguf_of(source, kind, tmp_path / "made")
        assert made == tmp_path / "made" / f"Tiny.{kind}.gguf"
        found = open_gguf(made)
        assert found.settings.family.config == wanted.settings.family.config
        for name in wanted.shapes():
            assert error_of(found.read(name), wanted.read(name)) <= error
        matrices = [t for t in GGUFReader(made).tensors if len(t.shape) == 2]
        assert {t.tensor_type.name for t in matrices} == {kind}
        before = made.stat().st_mtime_ns
        assert peers_gguf.gguf_of(source, kind, tmp_path / "made").stat().st_mtime_ns == before
    assert [p.suffix for p in (tmp_path / "made").iterdir()] == [".gguf"] * len(WRONG)


def test_table(benchmark_module: Any) -> None:
    """Medians with their spread, what was refused, and what is not installed."""
    peers, sides = benchmark_module("peers"), benchmark_module("peers_sides")

    class Fixed(sides.Side):
        package, weights, name = "torch", "bf16", "fixed"

        def open(self) -> None:
            self.opened = True

        def prefill(self, ids: list[int]) -> torch.Tensor:
            return torch.full((4,), float(len(ids)))

        def run(self, ids: list[int], steps: int) -> tuple[float, float]:
            return len(ids) / 1000, 0.5 if len(ids) == peers.LONG else 0.25

    ids = list(range(peers.LONG))
    figures = peers.opened(Fixed(None), ids, torch.full((4,), 32.0), 2)
    assert figures.differ == 1.0
    assert len(figures.opening) == 2
    for _ in range(3):
        figures.take_turn(ids, 4)
    result = {"name": "fixed", "version": "1", "weights": "bf16",
              "logits_relative_error": figures.differ} | figures.rates()
    text = peers.table({"machine": {"cpu": "this"}, "threads": 2, "runs": 3, "opens": 2,
                        "results": [result], "skipped": {"graphdsl int4:48": "no format"},
                        "not_installed": {"llama.cpp": "pip install it"}})
    row = next(line for line in text.splitlines() if line.startswith("| fixed"))
    assert "| 1000 (1000 to 1000) | 4 (4 to 4) | 2 (2 to 2) |" in row
    assert row.endswith("| 1.0e+00 |")
    assert "- graphdsl int4:48: no format" in text
    assert "- llama.cpp is not installed: `pip install it`" in text
