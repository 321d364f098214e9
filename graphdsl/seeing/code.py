"""The generated code of every node of a lowered graph."""

from __future__ import annotations

from collections.abc import Iterator

from graphdsl.backend import Backend
from graphdsl.builder import check_supported
from graphdsl.ir import Node
from graphdsl.passes.memory import ordered
from graphdsl.passes.pipeline import Lowered
from graphdsl.plan import Plan, make_plan
from graphdsl.seeing.stages import Place, Stage, places_of


def generated_code(stage: Stage, lowered: Lowered, backend: Backend) -> dict[Place, list[str]]:
    """The texts that `backend` generates for the places of `stage`, which is that of the lowered
    graph. A copy belongs to the node whose result is copied; views and constants have no code.

    Raises GraphError where the backend cannot run the graph.
    """
    check_supported(lowered.graph, backend)
    plan = make_plan(lowered.graph, lowered.recipes, backend, ordered)
    found: dict[Node, list[str]] = {}
    for node, text in _calls(plan, backend):
        found.setdefault(node, []).append(text)
    # The planner may give nodes other operands, but it keeps them all, in their order.
    twins = zip(stage.places, places_of(plan.graph), strict=True)
    return {place: found[planned.node] for place, planned in twins if planned.node in found}


def _calls(plan: Plan, backend: Backend) -> Iterator[tuple[Node, str]]:
    for body, texts in zip(plan.bodies, backend.call_texts(plan), strict=True):
        for call, text in zip(body.calls, texts, strict=True):
            node: Node | None = call.node
            if call.node.name == "copy":
                node = call.node.inputs[0].node
            if node is not None:
                yield node, text
