"""One build serves all lengths: plans are made at need, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_layers import LENGTHS, SLOTS, opened, steps

import graphdsl.layer
from graphdsl.runtime import _native
from graphdsl.runtime.operator import Operator
from graphdsl.runtime.plans import PLANS_A_THREAD

PROMPTS = (1, 2, 17, 300, 2000)


def forbid(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was traced or compiled again")


class CountedPlan(_native.Plan):
    """Counts the plans that are made."""

    made = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        CountedPlan.made += 1


def test_nothing_is_built_between_prompts(block_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    block = opened(block_path)
    monkeypatch.setattr(subprocess, "Popen", forbid)
    monkeypatch.setattr(graphdsl.layer, "_trace_body", forbid)
    monkeypatch.setattr(graphdsl.builder, "build_graph", forbid)
    monkeypatch.setattr(_native, "Plan", CountedPlan)
    CountedPlan.made = 0
    modules, libraries = set(sys.modules), mapped()
    state = block.new_state(1, 2048)
    for count, tokens in enumerate((*PROMPTS, *PROMPTS), start=1):
        x, positions = next(steps(1, (tokens,)))
        assert block(x, positions, state=state).shape == x.shape
        assert CountedPlan.made <= count
    made = CountedPlan.made
    x, positions = next(steps(1, (1,)))
    for _ in range(20):
        block(x, positions, state=state)
    assert CountedPlan.made == made
    assert mapped() == libraries
    assert {m for m in set(sys.modules) - modules if m.startswith("graphdsl")} == set()


def mapped() -> set[str]:
    """The shared libraries in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if ".so" in line}


def test_one_prompt_equals_the_same_in_pieces(block: Operator) -> None:
    tokens = sum(LENGTHS)
    parts = list(steps(2))
    x = torch.cat([x for x, _ in parts], dim=1)
    positions = torch.cat([p for _, p in parts], dim=1)
    whole = block(x, positions, state=block.new_state(2, tokens))
    state = block.new_state(2, tokens)
    pieces = torch.cat([block(x, p, state=state) for x, p in parts], dim=1)
    torch.testing.assert_close(whole, pieces)


def test_plans_are_bounded_and_share_a_workspace(block: Operator) -> None:
    state = block.new_state(2, SLOTS)
    seen = set()
    for tokens in (SLOTS, *range(1, 3 * PLANS_A_THREAD)):
        x, positions = next(steps(2, (min(tokens, SLOTS),)))
        block(x, positions, state=state)
        assert len(block._plans.plans) <= PLANS_A_THREAD
        assert block._plans.workspace is not None
        seen.add(block._plans.workspace.data_ptr())
    assert len(seen) == 1


def test_a_workspace_grows_once_for_a_longer_prompt(block: Operator) -> None:
    state, sizes = block.new_state(1, 600), []
    for tokens in (1, 600, 1, 5, 600):
        x, positions = next(steps(1, (tokens,)))
        block(x, positions, state=state)
        assert block._plans.workspace is not None
        sizes.append(block._plans.workspace.numel())
    assert sizes[1:] == [max(sizes)] * 4


def test_other_slots_and_batches_need_no_build(block: Operator) -> None:
    x, positions = next(steps(3))
    small = block(x, positions, state=block.new_state(3, 7))
    large = block(x, positions, state=block.new_state(3, 4096))
    torch.testing.assert_close(small, large)
