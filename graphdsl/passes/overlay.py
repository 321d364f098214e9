"""A graph under change: an overlay of forwards, users and order labels, frozen once at the end.

Labels never fall along an edge, so the search for a way around a match ends at its lowest label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from graphdsl.ir import Graph, Node, Value
from graphdsl.passes.match import NoMatch
from graphdsl.passes.rewrite import rebuild


@dataclass
class Overlay:
    """What has changed in a graph so far."""

    graph: Graph
    forward: dict[Value, Value] = field(default_factory=dict)
    dead: set[Node] = field(default_factory=set)
    label: dict[Node, int] = field(init=False)
    readers: dict[Value, dict[Node | None, None]] = field(init=False)

    def __post_init__(self) -> None:
        self.label = {node: i for i, node in enumerate(self.graph.nodes)}
        self.readers = {v: dict.fromkeys(users) for v, users in self.graph.users.items()}

    def resolve(self, value: Value) -> Value:
        """What has taken the place of `value`."""
        while value in self.forward:
            value = self.forward[value]
        return value

    def inputs(self, node: Node) -> tuple[Value, ...]:
        """The present operands of a node."""
        return tuple(self.resolve(v) for v in node.inputs)

    def users(self, value: Value) -> list[Node | None]:
        """The present users of a value; None stands for the graph's outputs."""
        return list(self.readers.get(value, ()))

    def check_inner(self, value: Value, nodes: Sequence[Node]) -> None:
        """Raises NoMatch if anything but `nodes` reads a value that is to disappear."""
        for user in self.readers.get(value, ()):
            if user not in nodes:
                made = f"the result of {value.node.name}" if value.node else value.name
                where = f"read by {user.name} at {user.loc} too" if user else "an output too"
                raise NoMatch(f"{made} is {where}", value)

    def check_no_cycle(self, nodes: Sequence[Node]) -> None:
        """Raises NoMatch if a path leaves `nodes` and comes back: as one node they would need
        themselves. Whoever reads what a node overwrites comes before it."""
        lowest = min(self.label[n] for n in nodes)
        seen: set[Node] = set()
        todo = [before for n in nodes for before in self._before(n) if before not in nodes]
        while todo:
            node = todo.pop()
            if node is None or node in seen or self.label[node] < lowest:
                continue
            if node in nodes:
                raise NoMatch("fusing would make a cycle", node.outputs[0])
            seen.add(node)
            todo += self._before(node)

    def _before(self, node: Node) -> list[Node | None]:
        """What has to come before a node: who made its operands, and the readers, through views
        too, of those that it overwrites."""
        operands = self.inputs(node)
        found = [v.node for v in operands]
        read = [operands[i] for _, i in node.op.aliases]
        while read:
            for user in self.users(read.pop()):
                if user is not None and user.op.kind == "view":
                    read += user.outputs
                elif user is not node:
                    found.append(user)
        return found

    def replace(self, old: Sequence[Value], new: Sequence[Value], nodes: Iterable[Node]) -> None:
        """Puts the `new` values in the place of the `old` ones; `nodes` made those."""
        nodes = list(nodes)
        top = max(self.label[n] for n in nodes)
        fresh = self._enter(new, top)
        for a, b in zip(old, new, strict=True):
            self.readers.setdefault(b, {}).update(self.readers.pop(a, {}))
            self.forward[a] = b
        self._raise(fresh, top)
        self._release(nodes)

    def fresh(self, values: Iterable[Value]) -> list[Node]:
        """The nodes behind `values` that the overlay does not know yet, in order."""
        found: dict[Node, None] = {}
        stack = [v.node for v in values]
        while stack:
            node = stack[-1]
            waiting = [] if node is None or node in self.label or node in found else [
                v.node for v in node.inputs
                if v.node and v.node not in self.label and v.node not in found]
            if waiting:
                stack += waiting
                continue
            if node is not None and node not in self.label:
                found[node] = None
            stack.pop()
        return list(found)

    def _enter(self, values: Sequence[Value], label: int) -> list[Node]:
        fresh = self.fresh(values)
        for node in fresh:
            self.label[node] = label
            for value in self.inputs(node):
                self.readers.setdefault(value, {})[node] = None
        return fresh

    def _raise(self, fresh: Sequence[Node], label: int) -> None:
        """Lifts whatever comes after the new nodes to their label."""
        above = [u for n in fresh for v in n.outputs for u in self.readers.get(v, ())]
        while above:
            node = above.pop()
            if node is not None and self.label[node] < label:
                self.label[node] = label
                above += [u for v in node.outputs for u in self.readers.get(v, ())]

    def _release(self, nodes: list[Node]) -> None:
        """Removes nodes, and those that nobody else reads."""
        while nodes:
            node = nodes.pop()
            if node in self.dead:
                continue
            self.dead.add(node)
            for value in self.inputs(node):
                readers = self.readers.get(value, {})
                readers.pop(node, None)
                made_by = value.node
                if made_by and not any(self.readers.get(v) for v in made_by.outputs):
                    nodes.append(made_by)

    def freeze(self) -> Graph:
        """The graph as it is now."""
        return rebuild(self.graph, self.resolve) if self.forward else self.graph


def stamped(nodes: Sequence[Node], values: Sequence[Value], *, like: Node, scope: str,
            origin: tuple[str, ...]) -> tuple[Value, ...]:
    """`values`, made by `nodes`, with the line of `like` and this scope and origin."""
    new: dict[Value, Value] = {}
    for node in nodes:
        inputs = tuple(new.get(v, v) for v in node.inputs)
        made = Node(node.op, inputs, node.attrs, node.out_types, node.body, like.loc, scope, origin)
        new.update(zip(node.outputs, made.outputs, strict=True))
    return tuple(new.get(v, v) for v in values)
