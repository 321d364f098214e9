"""Layers that stand in a row and are equal become a repeat; the others are opened.

A run is a chain in which every Layer reads what the one before it returns, in the same places, and
nothing else that changes but its own state and params. Its period may be several Layers: five of a
window and a global one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from graphdsl.ir import Graph, Node, Value
from graphdsl.passes.base import Fired, Missed, Result, Target, in_bodies
from graphdsl.passes.repeat import Operands, make_repeat
from graphdsl.passes.rewrite import clone, inline, substitute
from graphdsl.passes.structure import Structures, difference

LONGEST_PERIOD = 8


def is_layer(node: Node) -> bool:
    """Whether the node is a Layer: an Operation with params or state of its own."""
    return (node.body is not None and node.op.is_operation
            and bool(node.body.params or node.body.state))


@dataclass(frozen=True)
class _Link:
    """One Layer of a chain: its body and the operands by their role."""

    node: Node
    carried: tuple[int, ...]
    """Where the Layer takes what the one before it returns."""

    @property
    def body(self) -> Graph:
        assert self.node.body is not None
        return self.node.body

    @property
    def results(self) -> tuple[Value, ...]:
        return self.node.outputs[: len(self.body.results)]

    @property
    def new_state(self) -> tuple[Value, ...]:
        return self.node.outputs[len(self.body.results):]

    @property
    def args(self) -> tuple[Value, ...]:
        return self.node.inputs[: len(self.body.inputs)]

    @property
    def invariant(self) -> tuple[Value, ...]:
        return tuple(v for i, v in enumerate(self.args) if i not in self.carried)

    @property
    def state(self) -> tuple[Value, ...]:
        first = len(self.body.inputs)
        return self.node.inputs[first:first + len(self.body.state)]

    @property
    def params(self) -> tuple[Value, ...]:
        return self.node.inputs[len(self.body.inputs) + len(self.body.state):]


@dataclass
class _Roller:
    """The chains of one graph and what becomes of them."""

    graph: Graph
    min_turns: int
    structures: Structures = field(default_factory=Structures)
    fired: list[Fired] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)

    def rolled(self) -> Graph:
        """The graph with every run as a repeat."""
        new: dict[Value, Value] = {}
        for chain in self.chains():
            keys = [self.key(link) for link in chain]
            at = 0
            while at < len(chain):
                period, turns = longest_run(keys, at, self.min_turns)
                run = chain[at:at + period * turns]
                if turns > 1 and self.is_independent(run):
                    new.update(self.repeat(run, period))
                    at += period * turns
                else:
                    at += 1
                if at < len(chain) and keys[at] != keys[at - 1]:
                    self.note(chain[at], chain[at - 1])
        return substitute(self.graph, new) if new else self.graph

    def chains(self) -> list[list[_Link]]:
        """Layers in the order in which they follow one another."""
        chains: list[list[_Link]] = []
        last: dict[Node, list[_Link]] = {}
        for node in filter(is_layer, self.graph.nodes):
            before = next((v.node for v in node.inputs if v.node in last), None)
            carried = self.carried(before, node) if before else None
            chain = last.pop(before) if before and carried is not None else []
            if not chain:
                chains.append(chain)
            if len(chain) == 1 and carried is not None:
                chain[0] = replace(chain[0], carried=carried)
            if chain and chain[-1].carried != carried:
                chain = []
                chains.append(chain)
            chain.append(_Link(node, carried or ()))
            last[node] = chain
        return chains

    def carried(self, before: Node, node: Node) -> tuple[int, ...] | None:
        """Where `node` takes each result of the Layer before it; None if it is not a link."""
        assert before.body is not None
        assert node.body is not None
        args = list(node.inputs[: len(node.body.inputs)])
        results = before.outputs[: len(before.body.results)]
        for result in results:
            others = [u for u in self.graph.users.get(result, []) if u is not node]
            if others or args.count(result) != 1:
                other = others[0] if others else None
                where = f"by {other.name} at {other.loc}" if other else "as an output"
                self.missed.append(Missed("Roll", node.loc, node.scope, "what the layer before "
                                          f"it returns is read {where} too", before.loc))
                return None
        return tuple(args.index(result) for result in results)

    def key(self, link: _Link) -> Any:
        """What has to be equal in every turn."""
        return self.structures.number(link.body), link.carried, link.invariant

    def is_independent(self, run: Sequence[_Link]) -> bool:
        """Whether nothing that the run reads, but what is carried, is made in the run."""
        after = {link.node for link in run}
        start = self.graph.nodes.index(run[0].node)
        for node in self.graph.nodes[start:]:
            if any(v.node in after for v in node.inputs):
                after.add(node)
        return not any(v.node in after for link in run
                       for v in (*link.invariant, *link.state, *link.params))

    def note(self, link: _Link, before: _Link) -> None:
        text, loc = difference(link.body, before.body)
        if self.structures.number(link.body) == self.structures.number(before.body):
            text, loc = "it reads other values than the layer before it", None
        self.missed.append(Missed("Roll", link.node.loc, link.node.scope,
                                  f"it differs from {before.node.scope}: {text}", loc))

    def repeat(self, run: Sequence[_Link], period: int) -> dict[Value, Value]:
        """What takes the place of a run's outputs: those of one repeat."""
        first = run[0]
        turns = [run[i:i + period] for i in range(0, len(run), period)]
        invariant = tuple(dict.fromkeys(v for link in turns[0] for v in link.invariant))
        scope = _common_scope([link.node.scope for link in run])
        body = _body(turns[0], invariant, scope)
        operands = Operands(tuple(first.args[i] for i in first.carried), invariant,
                            tuple(tuple(v for link in turn for v in link.state) for turn in turns),
                            tuple(tuple(v for link in turn for v in link.params)
                                  for turn in turns))
        made = make_repeat(body, operands, replace(first.node, scope=scope))
        self.fired.append(Fired("Roll", first.node.loc, f"{scope}, {len(turns)} turns"))
        states = [v for link in run for v in link.new_state]
        old = (*run[-1].results, *states)
        return dict(zip(old, made.outputs, strict=True))


def longest_run(keys: Sequence[Any], start: int, min_turns: int) -> tuple[int, int]:
    """Period and number of turns of the run from `start` on that covers most; (1, 1) if none."""
    best = (1, 1)
    for period in range(1, min(LONGEST_PERIOD, len(keys) - start) + 1):
        turns = 1
        while _is_turn(keys, start, period, turns):
            turns += 1
        if turns >= max(min_turns, 2) and (best[1] == 1 or period * turns > best[0] * best[1]):
            best = (period, turns)
    return best


def _is_turn(keys: Sequence[Any], start: int, period: int, turn: int) -> bool:
    at = start + period * turn
    return list(keys[at:at + period]) == list(keys[start:start + period])


def _body(turn: Sequence[_Link], invariant: tuple[Value, ...], scope: str) -> Graph:
    """The Layers of one turn, one after the other."""
    def placed(node: Node, inputs: tuple[Value, ...]) -> Node:
        return replace(node, inputs=inputs, scope=".".join(s for s in (scope, node.scope) if s))

    first = turn[0]
    carried = tuple(replace(first.body.inputs[i]) for i in first.carried)
    names = {v: link.body.inputs[i].name for link in turn for i, v in enumerate(link.args)}
    leaves = {v: Value(v.type, name=names[v]) for v in invariant}
    params: list[Value] = []
    state: list[Value] = []
    new_state: list[Value] = []
    present = carried
    for number, link in enumerate(turn):
        prefix = f"{number}." if len(turn) > 1 else ""
        own_state = [replace(v, name=prefix + v.name) for v in link.body.state]
        own_params = [replace(v, name=prefix + v.name) for v in link.body.params]
        by_place = dict(zip(link.carried, present, strict=True))
        args = [by_place[i] if i in by_place else leaves[v] for i, v in enumerate(link.args)]
        outputs = clone(link.body, (*args, *own_state, *own_params), placed)
        present = outputs[: len(carried)]
        new_state += outputs[len(carried):]
        state += own_state
        params += own_params
    return Graph(first.node.name, (*carried, *leaves.values()), tuple(params), tuple(state),
                 (*present, *new_state))


def _common_scope(scopes: Sequence[str]) -> str:
    """`layers.*` for layers.0 to layers.79."""
    split = [s.split(".") for s in scopes]
    return ".".join(parts[0] if len(set(parts)) == 1 else "*"
                    for parts in zip(*split, strict=False))


def opened(graph: Graph) -> Graph:
    """`graph` without Layers: each is replaced by what it consists of."""
    while any(map(is_layer, graph.nodes)):
        graph = inline(graph, is_layer, keep_lines=is_layer)
    return graph


@dataclass(frozen=True)
class Roll:
    """Runs of equal Layers become a repeat, generated once; `min_turns` above the number of
    Layers keeps all of them apart."""

    name: ClassVar[str] = "roll"
    min_turns: int = 2

    def run(self, graph: Graph, target: Target) -> Result:
        fired: list[Fired] = []
        missed: list[Missed] = []
        while any(map(is_layer, graph.nodes)):
            roller = _Roller(graph, self.min_turns)
            graph = inline(roller.rolled(), is_layer, keep_lines=is_layer)
            fired += roller.fired
            missed += roller.missed
        return Result(in_bodies(graph, opened), tuple(fired), tuple(missed))
