"""Pointwise kernels that follow a matmul become its epilogue.

One kernel computes a few matmuls that share an operand (gate and up) and, while the sums are in
registers, the pointwise work that follows. Stages (see loops) tell what can be claimed: what reads
a matmul of stage k is of stage k + 1 only if nothing else that it reads comes later than k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graphdsl.ir import DTYPES, Graph, Node, Value
from graphdsl.op import Op, constant
from graphdsl.ops.linear import matmul_nt
from graphdsl.passes.base import Missed, Result, Target, in_bodies
from graphdsl.passes.loops import fired_nodes, is_inner, spaces, stages
from graphdsl.passes.repeat import through_body
from graphdsl.passes.rewrite import outline

RULE = "MatmulEpilogue"
MATMUL_EPILOGUE = Op("matmul_epilogue", through_body)
"""Matmuls of one operand by params, and pointwise kernels of their shape."""


@dataclass
class _Claims:
    """The groups of one graph, as they are found."""

    graph: Graph
    most: int
    missed: list[Missed] = field(default_factory=list)
    order: dict[Node, int] = field(init=False)
    stage: dict[Node, int] = field(init=False)
    group_of: dict[Node, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = {n: i for i, n in enumerate(self.graph.nodes)}
        self.stage = stages(self.graph, spaces(self.graph))

    def groups(self) -> list[list[Node]]:
        """Matmuls with what they claim, found from the first matmul to the last."""
        found = []
        for node in self.graph.nodes:
            if is_weighted(node) and node not in self.group_of:
                group = self._claimed(node)
                if group and not self._makes_cycle(group):
                    found.append(group)
                    self.group_of.update(dict.fromkeys(group, group))
        return found

    def _claimed(self, matmul: Node) -> list[Node]:
        """The matmul, those that meet it, and the pointwise nodes worth computing with them."""
        cone = self._cone(matmul)
        matmuls = [matmul, *self._meeting(matmul, cone)][: self.most]
        everything = dict.fromkeys(n for m in matmuls for n in self._cone(m))
        group = dict.fromkeys(matmuls)
        for node in sorted(everything, key=self.order.__getitem__):
            if all(self._available(v, group, self.stage[matmul]) for v in node.inputs):
                group[node] = None
        self._prune(group)
        pointwise = [n for n in group if n.op is not matmul_nt]
        read = {v.node for n in pointwise for v in n.inputs}
        # What reads no matmul, when what stood between is left out, is a loop like any other.
        kept = [m for m in matmuls if m in read]
        return [*kept, *pointwise] if kept else []

    def _cone(self, matmul: Node) -> dict[Node, None]:
        """Pointwise nodes of the matmul's shape, one stage above it, that follow from it."""
        shape, stage = matmul.out_types[0].shape, self.stage[matmul] + 1
        cone: dict[Node, None] = {}
        todo = [matmul]
        while todo:
            for user in self.graph.users.get(todo.pop().outputs[0], []):
                if (user and user not in cone and user.op.kind == "pointwise"
                        and user.out_types[0].shape == shape and self.stage[user] == stage
                        and user not in self.group_of):
                    cone[user] = None
                    todo.append(user)
        return cone

    def _meeting(self, matmul: Node, cone: dict[Node, None]) -> Iterator[Node]:
        """Other matmuls of the same operand whose followers meet those of `matmul`, by weights in
        the same format."""
        for user in self.graph.users[matmul.inputs[0]]:
            if (user and user is not matmul and is_weighted(user) and user not in self.group_of
                    and user.inputs[0] is matmul.inputs[0] and user.out_types == matmul.out_types
                    and any(n in cone for n in self._cone(user))):
                weights = [m.inputs[1] for m in (matmul, user)]
                if weights[0].type.quant == weights[1].type.quant:
                    yield user
                elif self.most > 1:
                    why = " and ".join(f"{w.name} is {w.type.quant or w.dtype}" for w in weights)
                    self.missed.append(Missed(RULE, matmul.loc, matmul.scope,
                                              f"{why}: they are two calls", user.loc))

    def _available(self, value: Value, group: dict[Node, None], stage: int) -> bool:
        node = value.node
        return (node is None or node in group or node.op is constant
                or self.stage[node] <= stage)

    def _prune(self, group: dict[Node, None]) -> None:
        """Leaves out whatever adds to what the kernel has to write: a node that only loops read
        can be computed there, if its operands are written anyway or are smaller."""
        changed = True
        while changed:
            changed = False
            for node in [n for n in reversed(group) if n.op is not matmul_nt]:
                operands = {v for v in node.inputs if v.node in group}
                exposed = sum(DTYPES[v.dtype] for v in operands if not self._leaves(v, group))
                if self._is_for_loops(node, group) and exposed < DTYPES[node.out_types[0].dtype]:
                    del group[node]
                    changed = True

    def _is_for_loops(self, node: Node, group: dict[Node, None]) -> bool:
        """Whether loops, and nothing else outside of the group, read what the node makes."""
        outside = [u for u in self.graph.users[node.outputs[0]] if u not in group]
        return bool(outside) and all(u is not None and is_inner(u) for u in outside)

    def _leaves(self, value: Value, group: dict[Node, None]) -> bool:
        """Whether something outside of the group reads the value."""
        return any(u not in group for u in self.graph.users[value])

    def _makes_cycle(self, group: Sequence[Node]) -> bool:
        """Whether what the group reads needs the group, directly or through other groups."""
        inside, stage = set(group), self.stage[group[0]]
        seen: set[Node] = set()
        todo = [v.node for n in group for v in n.inputs if v.node not in inside]
        while todo:
            node = todo.pop()
            if node is None or node in seen or self.stage[node] < stage:
                continue
            if node in inside:
                return True
            unit = self.group_of.get(node, [node])
            seen.update(unit)
            todo += [v.node for n in unit for v in n.inputs if v.node not in seen]
        return False


def is_weighted(node: Node) -> bool:
    """Whether the node multiplies by a param."""
    return node.op is matmul_nt and node.inputs[1].is_param


def fuse_epilogues(graph: Graph, most: int, missed: list[Missed]) -> Graph:
    """`graph` and the bodies of its repeats with epilogues of up to `most` matmuls. Adds to
    `missed` those whose weights differ in format."""
    graph = in_bodies(graph, lambda body: fuse_epilogues(body, most, missed))
    groups = _Claims(graph, most, missed).groups()
    return outline(graph, groups, MATMUL_EPILOGUE) if groups else graph


@dataclass(frozen=True)
class FuseEpilogues:
    """Bias, activation and residual add are computed where the matmul has its sums."""

    name: ClassVar[str] = "epilogues"

    def run(self, graph: Graph, target: Target) -> Result:
        if not target.fuses_loops or target.epilogue_matmuls < 1:
            return Result(graph)
        missed: list[Missed] = []
        new = fuse_epilogues(graph, target.epilogue_matmuls, missed)
        return Result(new, fired_nodes(new, MATMUL_EPILOGUE, RULE), tuple(missed))
