"""The graph after every pass, and which of its nodes are the same from one stage to the next.

Graphs are never edited, so nothing says that two nodes of two graphs are one. Here every node gets
a number that it keeps from stage to stage: while it is the same object, or is the same but for its
operands, or else does the same at the same line.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import constant
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.printer import SHOWN_BODIES, Names, text


@dataclass(frozen=True, eq=False)
class Place:
    """A node where it stands: in the graph, or in the body of another place."""

    node: Node
    parent: Place | None

    @property
    def is_open(self) -> bool:
        """Whether the nodes of the body have places of their own."""
        return self.node.body is not None and self.node.name in SHOWN_BODIES

    @property
    def depth(self) -> int:
        return self.parent.depth + 1 if self.parent else 0


@dataclass(frozen=True)
class Stage:
    """A graph after a pass. `numbers` has one for every place; the same in two stages means the
    same node. `changed` is false where the pass returned the graph that it was given."""

    name: str
    graph: Graph
    changed: bool
    places: tuple[Place, ...]
    numbers: Mapping[Place, int]
    names: Names


def places_of(graph: Graph, parent: Place | None = None) -> Iterator[Place]:
    """Every node in the order of `printer.text`."""
    for node in graph.nodes:
        place = Place(node, parent)
        yield place
        if place.is_open and node.body is not None:
            yield from places_of(node.body, place)


def stages_of(graphs: Sequence[tuple[str, Graph]]) -> list[Stage]:
    """The stages of these graphs, each under the name of its pass."""
    stages: list[Stage] = []
    count = 0
    for name, graph in graphs:
        before = stages[-1] if stages else None
        if before and before.graph is graph:
            stages.append(Stage(name, graph, False, before.places, before.numbers, before.names))
            continue
        places = tuple(places_of(graph))
        numbers = same_places(before.places, places) if before else {}
        known = before.numbers if before else {}
        kept = {place: known[old] for place, old in numbers.items()}
        for place in places:
            if place not in kept:
                kept[place] = count
                count += 1
        stages.append(Stage(name, graph, True, places, kept, names_of(graph)))
    return stages


def names_of(graph: Graph) -> Names:
    """The names of the text form: leaves first, then in the order of the lines."""
    names = Names()
    for value in graph.leaves:
        names(value)
    for place in places_of(graph):
        for value in (*place.node.inputs, *place.node.outputs):
            names(value)
        if place.is_open and place.node.body is not None:
            for leaf in place.node.body.leaves:
                names(leaf)
    return names


def same_places(old: Sequence[Place], new: Sequence[Place]) -> dict[Place, Place]:
    """For the places of `new` that were there before, the one in `old`: first the surest way of
    knowing again, then the next. Of several alike, the first goes to the first."""
    found: dict[Place, Place] = {}
    taken: set[Place] = set()
    for key in KEYS:
        waiting: dict[Hashable, deque[Place]] = defaultdict(deque)
        for place in old:
            if place not in taken:
                waiting[key(place)].append(place)
        for place in new:
            if place not in found and waiting.get(key(place)):
                found[place] = waiting[key(place)].popleft()
                taken.add(found[place])
    return found


def hidden_body(node: Node) -> str:
    """The text of a body that is shown with its node only, as that of an Operation is."""
    if node.body is None or node.name in SHOWN_BODIES:
        return ""
    return text(node.body)


def _equal(place: Place) -> Hashable:
    n = place.node
    return n.name, n.attrs, n.out_types, n.loc, n.scope, n.origin, hidden_body(n)


def _same_line(place: Place) -> Hashable:
    return place.node.name, place.node.loc, place.node.scope


def _same_type(place: Place) -> Hashable:
    return place.node.name, place.node.loc, place.node.out_types


KEYS: tuple[Callable[[Place], Hashable], ...] = (
    lambda place: place.node, _equal, _same_line, _same_type)


def value_names(stage: Stage) -> dict[Place, tuple[str, ...]]:
    """What every place reads, by names that are the same in all stages. What leaves a fused node
    is named after the node inside that makes it, and what a body is given after what is outside,
    so that a node that only moves reads the same."""
    found: dict[Place, tuple[str, ...]] = {}
    inner: dict[Place | None, list[Place]] = defaultdict(list)
    for place in stage.places:
        inner[place.parent].append(place)

    def walk(parent: Place | None, known: dict[Value, str]) -> None:
        for place in inner[parent]:
            node = place.node
            found[place] = tuple(known[v] for v in node.inputs)
            made = [f"{stage.numbers[place]}.{i}" for i in range(len(node.outputs))]
            if node.op is constant:
                made = [f"{node.attr['value']} {node.attr['dtype']}"]
            if place.is_open and node.body is not None:
                body = dict(zip(node.body.leaves, bound(node, found[place]), strict=True))
                walk(place, body)
                if node.op is not REPEAT:
                    made = [body[v] for v in node.body.outputs]
            known.update(zip(node.outputs, made, strict=True))

    walk(None, {v: f"{v.kind or 'input'} {v.name}" for v in stage.graph.leaves})
    return found


def bound(node: Node, operands: Sequence[Any]) -> list[Any]:
    """Of `operands` (one for every input of `node`), the ones that the leaves of its body stand
    for; in a repeat, those of the first turn."""
    if node.op is not REPEAT:
        return list(operands)
    split = operands_of(node, operands)
    first = [row[0] for row in (split.state, split.params) if row]
    return [*split.carried, *split.invariant, *(v for row in first for v in row)]
