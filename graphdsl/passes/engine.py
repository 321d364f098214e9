"""Applies rules to a graph until none fires: a worklist over an overlay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from graphdsl import ops
from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op
from graphdsl.passes.base import CheckFailed, Fired, Missed
from graphdsl.passes.match import NoMatch
from graphdsl.passes.overlay import Overlay, stamped
from graphdsl.passes.rules import Candidate, Rule

PER_NODE = 8
"""Far more rewrites than rules need that come to an end."""

OPENED = frozenset(f"{name}()" for name in ops.__all__)
"""The scopes of what the Operations of the library consist of. Nothing is made of that: it has just
been opened, for the backend does not take it whole."""


@dataclass
class _Engine:
    """One run of some rules on one graph."""

    overlay: Overlay
    rules: Sequence[Rule]
    present: set[Op]
    by_op: dict[Op, list[Rule]] = field(default_factory=dict)
    depth: int = 0
    fired: list[Fired] = field(default_factory=list)
    missed: dict[tuple[Node, str], Missed] = field(default_factory=dict)
    work: deque[Node] = field(default_factory=deque)
    queued: set[Node] = field(default_factory=set)

    def run(self) -> None:
        """Rewrites until no rule fires."""
        self.enable()
        self.push(n for n in self.overlay.graph.nodes if n.op in self.by_op)
        most = PER_NODE * (len(self.overlay.graph.nodes) + PER_NODE)
        while self.work:
            if len(self.fired) > most:
                raise CheckFailed(f"rule {self.fired[-1].rule} fires on what it makes: "
                                  f"{len(self.fired)} rewrites and no end")
            node = self.work.popleft()
            self.queued.discard(node)
            opened = node.scope.rpartition(".")[2] in OPENED
            for rule in self.by_op.get(node.op, ()):
                if (not (opened and rule.is_upward) and node not in self.overlay.dead
                        and self.fires(rule, node)):
                    break

    def enable(self) -> None:
        """Takes up the rules whose ops are all there. An op that comes with a rewrite brings its
        rules with it: what they match holds a new node, so it is near the rewrite."""
        ready = [r for r in self.rules if self.present.intersection(r.roots)
                 and self.present.issuperset(r.needs)]
        self.depth = max((r.depth for r in ready), default=0)
        self.by_op = {}
        for rule in ready:
            for op in rule.roots:
                self.by_op.setdefault(op, []).append(rule)

    def push(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node not in self.queued and node not in self.overlay.dead:
                self.queued.add(node)
                self.work.append(node)

    def fires(self, rule: Rule, node: Node) -> bool:
        """Tries one rule at one node, and notes why it does not fire."""
        try:
            found = rule.find(self.overlay, node)
            new = self.made(rule, node, found)
        except NoMatch as failure:
            self.note(rule, node, failure)
            return False
        touched = {v for n in found.nodes for v in self.overlay.inputs(n)}
        fresh = self.overlay.fresh(new)
        self.overlay.replace(found.values, new, found.nodes)
        lines = tuple(dict.fromkeys(n.loc for n in found.nodes))
        self.fired.append(Fired(rule.name, node.loc, node.scope, lines))
        self.missed.pop((node, rule.name), None)
        self.push([*fresh, *self.near([*new, *touched], self.depth)])
        return True

    def made(self, rule: Rule, node: Node, found: Candidate) -> tuple[Value, ...]:
        """The new values. Raises NoMatch where they cannot take the place of the old ones:
        `before` may be wider than `after`, a broadcast operand for one."""
        try:
            made = found.make()
        except GraphError as error:
            raise NoMatch(f"what it would make does not fit: {error.message}",
                          found.values[0], len(found.nodes) + 1) from None
        values = tuple(made) if isinstance(made, tuple | list) else (made,)
        for old, new in zip(found.values, values, strict=True):
            if old.type.plain != new.type.plain:
                raise NoMatch(f"it would make {new.type} of {old.type}", old,
                              len(found.nodes) + 1)
        fresh = self.overlay.fresh(values)
        self.check_not_reopened(fresh, found)
        if not self.present.issuperset(n.op for n in fresh):
            self.present.update(n.op for n in fresh)
            self.enable()
        origin = tuple(dict.fromkeys([*(o for n in found.nodes for o in n.origin), rule.name]))
        return stamped(fresh, values, like=node, scope=_common([n.scope for n in found.nodes]),
                       origin=origin)

    def check_not_reopened(self, fresh: Sequence[Node], found: Candidate) -> None:
        """Refuses to make an Operation again out of what one was expanded to."""
        names = {f"{n.name}()" for n in fresh if n.op.is_operation}
        for node in found.nodes:
            inside = names.intersection(node.scope.split("."))
            if inside:
                raise NoMatch(f"{node.name} is a part of {min(inside)[:-2]}, expanded",
                              node.outputs[0], 0)

    def note(self, rule: Rule, node: Node, failure: NoMatch) -> None:
        """Keeps a failure that was a near miss: more than the root of the pattern was found, or
        the root is an op that says what is meant."""
        if failure.depth < 1 or (failure.depth < 2 and node.op.kind == "pointwise"):
            return
        at = failure.at.loc if failure.at is not None else None
        self.missed[node, rule.name] = Missed(rule.name, node.loc, node.scope, failure.reason, at,
                                              failure.depth)

    def near(self, values: Iterable[Value], depth: int) -> list[Node]:
        """What may match after a change: the nodes that made `values` and the users, up to
        `depth` levels on, as far as there are rules for them."""
        level = list(dict.fromkeys(values))
        seen = dict.fromkeys(v.node for v in level if v.node)
        for _ in range(depth):
            users = dict.fromkeys(u for v in level for u in self.overlay.readers.get(v, ())
                                  if u and u not in seen)
            seen |= users
            level = [v for u in users for v in u.outputs]
        return [n for n in seen if n.op in self.by_op]


def _common(scopes: Sequence[str]) -> str:
    """The scope that all nodes share."""
    split = [s.split(".") for s in scopes]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def apply_rules(graph: Graph, rules: Sequence[Rule],
                ) -> tuple[Graph, tuple[Fired, ...], tuple[Missed, ...]]:
    """`graph` after as many rewrites as can be made, what fired, and what nearly did.

    Raises CheckFailed for rules that never come to an end.
    """
    present = {node.op for node in graph.nodes}
    if not any(present.intersection(r.roots) and present.issuperset(r.needs) for r in rules):
        return graph, (), ()
    engine = _Engine(Overlay(graph), rules, present)
    engine.run()
    missed = [m for (node, _), m in engine.missed.items() if node not in engine.overlay.dead]
    return engine.overlay.freeze(), tuple(engine.fired), tuple(missed)
