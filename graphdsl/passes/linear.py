"""Rules for linears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op, constant
from graphdsl.ops.linear import linear, matmul_nt
from graphdsl.ops.shape import concat, split
from graphdsl.passes.match import NoMatch
from graphdsl.passes.overlay import Overlay
from graphdsl.passes.rules import GroupRule


@dataclass(frozen=True)
class MergeLinears(GroupRule):
    """Linears that read one x become one wide linear and a split (QKV; gate and up).

    Two that meet in one pointwise result are left for its epilogue, if the backend has epilogues
    of several matmuls (`meeting` > 1): what they make never reaches memory then.
    """

    op: Op = linear
    meeting: int = 1

    shapes = "x[*b, k], wq[n, k], wk[m, k], wv[m, k], bq[n], bk[m]"
    params = ("wq", "wk", "wv", "bq", "bk")

    @staticmethod
    def before(x: Value, wq: Value, wk: Value, wv: Value, bq: Value, bk: Value) -> Any:
        return (linear(x, wq), linear(x, wk), linear(x, wv), linear(x, wq, bq), linear(x, wk, bk),
                matmul_nt(x, wv), matmul_nt(x, wk))

    @property
    def roots(self) -> tuple[Op, ...]:
        return (self.op,)

    def members(self, overlay: Overlay, node: Node) -> list[Node]:
        x = overlay.inputs(node)[0]
        siblings = [u for u in overlay.users(x) if u and self._is_like(overlay, u, node)]
        if len(siblings) < 2:
            raise NoMatch("no other linear reads this x", node.outputs[0])
        for weight in overlay.inputs(node)[1:]:
            if not _is_made_of_params(overlay, weight):
                name = weight.name or str(weight.type)
                raise NoMatch(f"the weight {name} is not a Param", weight, 2)
        alike = [u for u in siblings if all(_is_made_of_params(overlay, v)
                                            for v in overlay.inputs(u)[1:])]
        cones = {n: _followers(overlay, n) for n in alike}
        kept = [n for n in alike if self.meeting < 2 or not any(
            cones[n] & cones[other] for other in alike if other is not n)]
        if node not in kept:
            raise NoMatch("it is left for an epilogue, where it meets its sibling",
                          node.outputs[0], 2)
        if len(kept) < 2:
            raise NoMatch("no other linear with Params reads this x", node.outputs[0])
        return kept

    def _is_like(self, overlay: Overlay, node: Node, root: Node) -> bool:
        operands, wanted = overlay.inputs(node), overlay.inputs(root)
        return (node.op is self.op and operands[0] is wanted[0]
                and len(operands) == len(wanted))

    def after(self, operands: Sequence[Sequence[Value]]) -> Sequence[Value]:
        x, sizes = operands[0][0], tuple(o[1].shape[0] for o in operands)
        joined = [concat(*column, axis=0) for column in list(zip(*operands, strict=True))[1:]]
        pieces: Sequence[Value] = split(self.op(x, *joined), sizes=sizes, axis=-1)
        return pieces


def _is_made_of_params(overlay: Overlay, value: Value) -> bool:
    """Whether a value is known when weights are loaded."""
    if value.node is None:
        return value.is_param
    inputs = overlay.inputs(value.node)
    return value.node.op is constant or (
        bool(inputs) and all(_is_made_of_params(overlay, v) for v in inputs))


def _followers(overlay: Overlay, node: Node) -> set[Node]:
    """Pointwise nodes of the same shape that follow from a linear alone."""
    found: set[Node] = set()
    todo = [node]
    while todo:
        users = overlay.users(todo.pop().outputs[0])
        for user in users:
            if (user and user not in found and is_pointwise(user)
                    and user.out_types[0].shape == node.out_types[0].shape):
                found.add(user)
                todo.append(user)
    return found


def is_pointwise(node: Node) -> bool:
    """Whether a kernel is pointwise, or an Operation whose every kernel is."""
    if node.body is not None:
        return _is_pointwise_body(node.body)
    return node.op.kind == "pointwise"


def _is_pointwise_body(body: Graph) -> bool:
    return all(map(is_pointwise, body.nodes))


LINEARS: tuple[Op, ...] = (linear, matmul_nt)
"""What is merged, before and after expansion."""
