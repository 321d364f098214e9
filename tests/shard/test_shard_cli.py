"""graphdsl generate --tensor-parallel: what it asks for, and the real thing under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from graphdsl.cli import launch_of, main
from graphdsl.commands.parallel import check_launch, passes_of
from graphdsl.commands.session import Launch
from graphdsl.errors import GraphError

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
SMOLLM2 = ("smollm2", "--dtype", "f32", "--quantize", "none", "--greedy", "--ids", "--prompt-ids",
           "504 2426 260 28", "--max-new-tokens", "8")


def test_without_torchrun(capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert main(["generate", "smollm2", "--prompt", "hi", "--tensor-parallel", "3"]) == 2
    said = capsys.readouterr().err
    assert "--tensor-parallel 3 takes 3 processes, and this is one" in said
    assert "torchrun --nproc-per-node 3 -m graphdsl generate" in said


def test_another_number_of_processes() -> None:
    launch = Launch(0, 2, "localhost", 29500)
    with pytest.raises(GraphError, match="torchrun has started 2 processes") as caught:
        check_launch(3, launch)
    assert "--nproc-per-node 3" in caught.value.hint
    check_launch(2, launch)
    check_launch(1, None)


def test_what_torchrun_says() -> None:
    said = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert launch_of(said) == Launch(1, 3, "127.0.0.1", 29500)
    assert launch_of({**said, "RANK": "first"}) is None
    assert launch_of({}) is None


def test_options_of_passes_stay() -> None:
    assert passes_of({"roll": {"min_turns": "3"}}, None) == {"roll": {"min_turns": "3"}}


@contextmanager
def torchrun(ranks: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`graphdsl generate` in so many processes."""
    command = (*TORCHRUN, str(ranks), "-m", "graphdsl", "generate", *arguments,
               "--tensor-parallel", str(ranks))
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def ids_of(out: str) -> list[int]:
    return [int(word) for word in out.splitlines()[-1].split()]


@pytest.mark.full
def test_smollm2_over_three_ranks() -> None:
    alone = subprocess.run((sys.executable, "-m", "graphdsl", "generate", *SMOLLM2), text=True,
                           capture_output=True, check=False)
    if alone.returncode == 3:
        pytest.skip(f"SmolLM2 cannot be fetched: {alone.stderr}")
    with torchrun(3, *SMOLLM2) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert ids_of(out) == ids_of(alone.stdout)
    assert len(ids_of(out)) == 8
    assert out.count("new tokens") == 1, "rank 0 alone prints"


@pytest.mark.full
def test_smollm2_over_two_ranks_is_refused() -> None:
    with torchrun(2, *SMOLLM2) as process:
        _, said = process.communicate()
    assert process.returncode != 0
    if "cannot be fetched" not in said:
        assert "9 heads of attention cannot be split over 2 ranks" in said


@pytest.mark.full
def test_a_killed_rank_ends_the_run() -> None:
    """A child of torchrun is killed while text comes: the others end with a message."""
    endless = ("smollm2", "--dtype", "f32", "--quantize", "none", "--greedy", "--prompt",
               "Count to a thousand.", "--min-new-tokens", "2000", "--max-new-tokens", "2000")
    with torchrun(3, *endless) as process:
        ranks = _children(process.pid, wanted=3)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("model")
        assert process.stdout.read(8)
        os.kill(ranks[-1], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another of the 3 ranks has ended or does not answer" in said


def _children(parent: int, wanted: int) -> Sequence[int]:
    """The processes that `parent` has started, once there are so many."""
    for _ in range(600):
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if len(found) >= wanted:
            return [int(pid) for pid in found]
        time.sleep(0.1)
    raise AssertionError(f"only {found} of {wanted} ranks")
