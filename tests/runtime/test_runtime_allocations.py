"""Thousands of steps of decoding allocate nothing."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from runtime_layers import Block, built, opened

from graphdsl.runtime.operator import Operator, State

STEPS, WARM = 4000, 10
SLACK = 16 << 10
"""Bytes by which what Python itself keeps may come and go."""


class Mallinfo2(ctypes.Structure):
    """What glibc tells of its heap: `uordblks` and `hblkhd` are the bytes in use, in arenas and
    mapped on their own."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]


def bytes_in_use() -> int:
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def held_by(operator: Operator, state: State) -> list[int]:
    """Where plans, workspace and caches lie."""
    own = operator._plans
    assert own.workspace is not None
    return [own.workspace.data_ptr(), own.workspace.numel(), *map(id, own.plans.values()),
            *(tensor.data_ptr() for tensor in state.values())]


@pytest.mark.parametrize("layout", ["bnsd", "bnsd:paged/16", "bsnd:shift"])
@pytest.mark.usefixtures("threads")
def test_decoding_allocates_nothing(layout: str, cache: Path) -> None:
    torch.set_num_threads(1)
    operator = opened(built(Block(), cache, layout=layout))
    state = operator.new_state(1, STEPS)
    x, position = torch.randn(1, 1, 32), torch.zeros(1, 1, dtype=torch.int32)
    before, held = 0, list[int]()
    with torch.inference_mode():
        for step in range(STEPS):
            position.fill_(step)
            operator(x, position, state=state)
            if step == WARM:
                before, held = bytes_in_use(), held_by(operator, state)
    assert held_by(operator, state) == held
    assert bytes_in_use() - before < SLACK


@pytest.mark.usefixtures("threads")
def test_results_that_are_given_are_written_to(cache: Path) -> None:
    """With tensors of the caller's own, torch makes none in a step, and the same step gives the
    same numbers."""
    torch.set_num_threads(1)
    operator = opened(built(Block(), cache))
    state = operator.new_state(1, 8)
    x, position = torch.randn(1, 1, 32), torch.zeros(1, 1, dtype=torch.int32)
    out = [torch.empty(1, 1, 32)]
    with torch.inference_mode():
        wanted = operator(x, position, state=state)
        assert operator(x, position, state=state, out=out) is out[0]
        with torch.profiler.profile(profile_memory=True) as profiled:
            for _ in range(3):
                out[0].fill_(0)
                assert operator(x, position, state=state, out=out) is out[0]
    assert torch.equal(out[0], wanted)
    assert {event.key for event in profiled.key_averages()} == {"aten::fill_"}
