"""The generated calls of one layer of every family: what a decode step waits for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_families import SMALL

from graphdsl.backends.cpu.backend import BACKEND
from graphdsl.call_plan import Body, Call, CallPlan, make_plan
from graphdsl.layer import trace
from graphdsl.passes.memory import ordered
from graphdsl.passes.pipeline import run_pipeline

MOST = 9
"""Calls of a layer without experts."""


def plan_of(family: str) -> CallPlan:
    lowered = run_pipeline(trace(SMALL[family], "bf16"), BACKEND.target)
    return make_plan(lowered.graph, lowered.recipes, BACKEND, ordered)


def listed(body: Body) -> str:
    """A line a call: its name, and what it consists of."""
    lines = []
    for call in body.calls:
        op = call.op if isinstance(call, Call) else "repeat"
        scope = call.node.scope.removeprefix("layers.*").lstrip(".") if op != "repeat" else ""
        lines.append(f"  {op:<16} {scope}".rstrip())
    return "\n".join([f"{body.name}: {len(body.calls)} calls", *lines])


@pytest.mark.parametrize("family", SMALL)
def test_calls(family: str, golden: Callable[[str, str], None]) -> None:
    plan = plan_of(family)
    step, turn = plan.bodies
    golden(f"calls/{family}.txt", "\n".join([listed(step), listed(turn)]))
    assert len(turn.calls) <= MOST or family == "mixtral"
