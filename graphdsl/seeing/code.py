"""The generated code of every node of a lowered graph."""

from __future__ import annotations

from graphdsl.backend import Backend
from graphdsl.builder import check_supported
from graphdsl.ir import Node
from graphdsl.passes.pipeline import Lowered
from graphdsl.seeing.stages import Place, Stage, places_of, same_places


def generated_code(stage: Stage, lowered: Lowered, backend: Backend) -> dict[Place, list[str]]:
    """The texts that `backend` generates for the places of `stage`, which is that of the lowered
    graph. Views and constants have no code.

    Raises GraphError where the backend cannot run the graph.
    """
    check_supported(lowered.graph, backend)
    plan = backend.plan(lowered)
    found: dict[Node, list[str]] = {}
    for node, text in backend.node_texts(plan):
        found.setdefault(node, []).append(text)
    # Planning may give nodes other operands, and make new ones.
    twins = same_places(tuple(places_of(plan.graph)), stage.places)
    return {place: found[twins[place].node] for place in stage.places
            if place in twins and twins[place].node in found}
