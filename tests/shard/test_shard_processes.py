"""Ranks that are processes of their own give what the reference of the whole model gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rankcase import LOST

HERE = Path(__file__).parent
MOST_SECONDS = 100
"""After which a rank that hangs is ended."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def ranks_of(case: str, ranks: int, cache: Path, store: Path) -> list[tuple[int, str]]:
    """The exit code of every rank, and what it says of errors."""
    environment = {**os.environ, "GRAPHDSL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "rankcase.py"), case]
    started = [subprocess.Popen([*command, str(rank), str(ranks), str(store)], env=environment,
                                stderr=subprocess.PIPE, text=True) for rank in range(ranks)]
    try:
        said = [process.communicate(timeout=MOST_SECONDS)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def test_two_processes_and_one_that_is_killed(cache: Path, tmp_path: Path) -> None:
    """The case of a killed rank comes last: the others end with a message."""
    first, last = ranks_of("f32+refused+dies", 2, cache, tmp_path / "store")
    assert last[0] == -signal.SIGKILL, last[1]
    assert first[0] == LOST, first[1]
    assert "rank 0: another of the 2 ranks has ended or does not answer" in first[1]


@pytest.mark.full
def test_a_layer_on_the_emulation_of_atb(emulation: Path, tmp_path: Path) -> None:
    for code, said in ranks_of("ascend", 2, emulation, tmp_path / "store"):
        assert code == 0, said


@pytest.mark.full
def test_16_bits_and_four_ranks(cache: Path, tmp_path: Path) -> None:
    for case, ranks in (("bf16", 2), ("f32", 4)):
        for code, said in ranks_of(case, ranks, cache, tmp_path / case):
            assert code == 0, said
