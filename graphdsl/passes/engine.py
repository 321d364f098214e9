"""Applies rules to a graph until none fires: a worklist over an overlay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op
from graphdsl.passes.base import CheckFailed, Fired, Missed
from graphdsl.passes.match import NoMatch
from graphdsl.passes.overlay import Overlay, stamped
from graphdsl.passes.rules import Candidate, Rule

PER_NODE = 8
"""Far more rewrites than rules need that come to an end."""


@dataclass
class _Engine:
    """One run of some rules on one graph."""

    overlay: Overlay
    rules: Sequence[Rule]
    fired: list[Fired] = field(default_factory=list)
    missed: dict[tuple[Node, str], Missed] = field(default_factory=dict)
    work: deque[Node] = field(default_factory=deque)
    queued: set[Node] = field(default_factory=set)

    def run(self) -> None:
        by_op: dict[Op, list[Rule]] = {}
        for rule in self.rules:
            for op in rule.roots:
                by_op.setdefault(op, []).append(rule)
        self.push(n for n in self.overlay.graph.nodes if n.op in by_op)
        most = PER_NODE * (len(self.overlay.graph.nodes) + PER_NODE)
        while self.work:
            if len(self.fired) > most:
                raise CheckFailed(f"rule {self.fired[-1].rule} fires on what it makes: "
                                  f"{len(self.fired)} rewrites and no end")
            node = self.work.popleft()
            self.queued.discard(node)
            for rule in by_op.get(node.op, ()):
                if node not in self.overlay.dead and self.fires(rule, node):
                    break

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
        self.overlay.replace(found.values, new, found.nodes)
        self.fired.append(Fired(rule.name, node.loc, node.scope))
        self.missed.pop((node, rule.name), None)
        self.push(self.near([*new, *touched], max(r.depth for r in self.rules)))
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
            if old.type != new.type:
                raise NoMatch(f"it would make {new.type} of {old.type}", old,
                              len(found.nodes) + 1)
        fresh = self.overlay.fresh(values)
        self.check_not_reopened(fresh, found)
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
        self.missed[node, rule.name] = Missed(rule.name, node.loc, node.scope, failure.reason, at)

    def near(self, values: Iterable[Value], depth: int) -> list[Node]:
        """What may match after a change: the nodes that made `values` and the users, up to
        `depth` levels on."""
        found = dict.fromkeys(v.node for v in values if v.node)
        level = list(dict.fromkeys(values))
        for _ in range(depth):
            users = dict.fromkeys(u for v in level for u in self.overlay.users(v) if u)
            found |= users
            level = [v for u in users for v in u.outputs]
        return list(found)


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
    rules = [r for r in rules if present.intersection(r.roots) and present.issuperset(r.needs)]
    if not rules:
        return graph, (), ()
    engine = _Engine(Overlay(graph), rules)
    engine.run()
    missed = [m for (node, _), m in engine.missed.items() if node not in engine.overlay.dead]
    return engine.overlay.freeze(), tuple(engine.fired), tuple(missed)
