"""What Python refuses the emulation refuses too, given the C++ that was never checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from refusalcase import Answer, answers
from wrong_cases import RIGHT, RIGHT_310P, WRONG
from wrong_graphs import Wrong

from graphdsl.backends.ascend.emulation_build import build_emulation

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

LONG = ("too many nodes", "too many inputs")
"""Too long as C++ for a compiler that is waited for: limits of graphs have tests of their own."""
CASES = tuple(wrong for wrong in WRONG if wrong.name not in LONG)
GOOD = (*(Wrong(f"910b {name}", graph, ()) for name, graph in RIGHT.items()),
        *(Wrong(f"310p {name}", graph, (), "310p") for name, graph in RIGHT_310P.items()))
CODES = {
    "read before written": 2, "written twice": 2, "name": 2, "append elsewhere": 2,
    "bias flag without bias": 2, "concat of 3": 2,
    "k differs": 8, "norm of 24": 8, "partial coefficient": 8, "q of three axes": 8,
    "hidden of 8": 8, "paged of wide heads in large blocks": 8,
    "f32 with bias": 13, "norm of f32": 13, "mul of f32": 13, "cast of f16 to bf16": 13,
    "f16 mask of bf16": 13, "paged nd on 310p": 13, "kv_cache of bf16": 13, "split of f32": 13,
    "lengths on the device": 14, "contexts on the device": 14, "offsets on the device": 14,
    "heads of kv_heads": 1, "triangle without mask": 1, "window without sliding mask": 1,
    "epsilon 0": 1, "split in 4": 1, "view without rows": 18,
}
"""ATB's code, where the reference says which it is."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, emulation: Path) -> dict[str, Answer]:
    archive = build_emulation(emulation, os.environ)
    return answers((*CASES, *GOOD), tmp_path_factory.mktemp("refusals"), archive)


@pytest.mark.parametrize("wrong", CASES, ids=lambda wrong: wrong.name)
def test_refused(wrong: Wrong, found: dict[str, Answer]) -> None:
    answer = found[wrong.name]
    assert answer.code != 0
    assert answer.code == CODES.get(wrong.name, answer.code)
    assert len(answer.sentence) > len("Layer_decode: ")


def test_codes_are_of_cases() -> None:
    assert CODES.keys() <= {wrong.name for wrong in CASES}


@pytest.mark.parametrize("right", GOOD, ids=lambda right: right.name)
def test_accepted(right: Wrong, found: dict[str, Answer]) -> None:
    assert found[right.name] == Answer("setup", 0, "")
