"""Rules for linears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op, constant
from graphdsl.ops.linear import linear, matmul, matmul_nt
from graphdsl.ops.shape import concat, slice, split, transpose
from graphdsl.passes.match import Match, NoMatch
from graphdsl.passes.overlay import Overlay
from graphdsl.passes.rules import Candidate, FusionRule, GroupRule, Rule


class LinearOfMatmul(FusionRule):
    """matmul_nt by a weight is a linear."""

    shapes = "x[*b, k], w[n, k]"
    params = ("w",)

    @staticmethod
    def before(x: Value, w: Value) -> Any:
        return matmul_nt(x, w)

    @staticmethod
    def after(x: Value, w: Value) -> Any:
        return linear(x, w)

    def when(self, m: Match) -> None:
        m.is_meant(is_made_of_params(m.w))


class LinearOfProduct(FusionRule):
    """x @ w by a weight [in, out] is a linear; the weight is transposed when it is loaded."""

    shapes = "x[m, k], w[k, n]"
    params = ("w",)

    @staticmethod
    def before(x: Value, w: Value) -> Any:
        return matmul(x, w)

    @staticmethod
    def after(x: Value, w: Value) -> Any:
        return linear(x, transpose(w, order=(1, 0)))

    def when(self, m: Match) -> None:
        m.is_meant(len(m.w.shape) == 2 and is_made_of_params(m.w))


class LinearBias(FusionRule):
    """linear + b is linear with a bias."""

    shapes = "x[*b, k], w[n, k], b[n]"
    params = ("w", "b")

    @staticmethod
    def before(x: Value, w: Value, b: Value) -> Any:
        return linear(x, w) + b

    @staticmethod
    def after(x: Value, w: Value, b: Value) -> Any:
        return linear(x, w, b)

    def when(self, m: Match) -> None:
        m.is_meant(len(m.b.shape) == 1)
        m.require(is_made_of_params(m.b), "the bias is not a Param", m.b)


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
            self._refuse_alone(overlay, node)
        for weight in overlay.inputs(node)[1:]:
            if not is_made_of_params(weight, overlay.inputs):
                name = weight.name or str(weight.type)
                raise NoMatch(f"the weight {name} is not a Param", weight, 2)
        alike = [u for u in siblings if all(is_made_of_params(v, overlay.inputs)
                                            for v in overlay.inputs(u)[1:])]
        cones = {n: _followers(overlay, n.outputs[0]) for n in alike}
        kept = [n for n in alike if self.meeting < 2 or not any(
            cones[n] & cones[other] for other in alike if other is not n)]
        if node not in kept:
            raise NoMatch("it is left for an epilogue, where it meets its sibling",
                          node.outputs[0], 2)
        if len(kept) < 2:
            raise NoMatch("no other linear with Params reads this x", node.outputs[0])
        return kept

    def _refuse_alone(self, overlay: Overlay, node: Node) -> None:
        operands = overlay.inputs(node)
        others = [u for u in overlay.users(operands[0]) if u and u is not node
                  and u.op is self.op and overlay.inputs(u)[0] is operands[0]]
        if not others:
            raise NoMatch("no other linear reads this x", node.outputs[0])
        has = "no bias" if len(operands) > 2 else "a bias"
        raise NoMatch(f"the other linear of this x has {has}", others[0].outputs[0], 2)

    def _is_like(self, overlay: Overlay, node: Node, root: Node) -> bool:
        operands, wanted = overlay.inputs(node), overlay.inputs(root)
        return (node.op is self.op and operands[0] is wanted[0]
                and len(operands) == len(wanted))

    def after(self, operands: Sequence[Sequence[Value]]) -> Sequence[Value]:
        x, sizes = operands[0][0], tuple(o[1].shape[0] for o in operands)
        joined = [concat(*column, axis=0) for column in list(zip(*operands, strict=True))[1:]]
        pieces: Sequence[Value] = split(self.op(x, *joined), sizes=sizes, axis=-1)
        return pieces


@dataclass(frozen=True)
class SplitLinear(GroupRule):
    """A linear whose pieces meet in one pointwise result (gate and up, by one weight) becomes one
    linear a piece, by slices of the weight: the result is made in their epilogue.

    For backends whose epilogues take as many matmuls (`meeting`) as there are pieces.
    """

    op: Op = linear
    meeting: int = 2

    shapes = "x[*b, k], w[6, k], b[6]"
    params = ("w", "b")

    @staticmethod
    def before(x: Value, w: Value, b: Value) -> Any:
        gate, up = split(linear(x, w, b), sizes=(3, 3))
        sliced, wide = linear(x, w), matmul_nt(x, w)
        return gate * up, sliced[..., 4:] - sliced[..., :2], wide[..., 3:] + wide[..., :3]

    @property
    def roots(self) -> tuple[Op, ...]:
        return (self.op,)

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        """The pieces of what `node` makes, and what makes them."""
        whole, operands = node.outputs[0], overlay.inputs(node)
        pieces = _pieces(overlay, whole)
        cones = [_followers(overlay, piece) for piece in pieces]
        if len(pieces) < 2 or not set.intersection(*cones):
            raise NoMatch("it has no pieces that meet in one pointwise result", whole)
        if len(pieces) > self.meeting:
            raise NoMatch(f"{len(pieces)} pieces meet, but an epilogue takes {self.meeting}", whole,
                          2)
        for weight in operands[1:]:
            if not is_made_of_params(weight, overlay.inputs):
                raise NoMatch(f"the weight {weight.name or weight.type} is not a Param", weight, 2)
        nodes = tuple(dict.fromkeys([node, *(piece.node for piece in pieces if piece.node)]))
        for user in overlay.users(whole):
            if user not in nodes:
                where = f"read by {user.name} at {user.loc} too" if user else "an output too"
                raise NoMatch(f"the whole result is {where}", whole, 2)
        return Candidate(tuple(pieces), nodes, lambda: self.made(operands, list(pieces.values())))

    def made(self, operands: Sequence[Value], spans: Sequence[tuple[int, int]]) -> list[Value]:
        """The pieces by themselves; `spans` are the rows of the weight that make each: where they
        start, and how many they are."""
        x, *weights = operands
        return [self.op(x, *(slice(w, axis=0, start=start, size=size) for w in weights))
                for start, size in spans]


def _pieces(overlay: Overlay, whole: Value) -> dict[Value, tuple[int, int]]:
    """What is split and sliced off along the last axis and is read: where it starts, its size."""
    found: dict[Value, tuple[int, int]] = {}
    for user in overlay.users(whole):
        if user is None or user.op not in (split, slice):
            continue
        if user.attr["axis"] % len(whole.shape) != len(whole.shape) - 1:
            continue
        sizes = user.attr["sizes"] if user.op is split else (user.attr["size"],)
        start = 0 if user.op is split else user.attr["start"]
        for value, size in zip(user.outputs, sizes, strict=True):
            if overlay.users(value) and isinstance(start, int) and isinstance(size, int):
                found[value] = start, size
            start += size
    return found


def _own_inputs(node: Node) -> Sequence[Value]:
    return node.inputs


def is_made_of_params(value: Value,
                      inputs_of: Callable[[Node], Sequence[Value]] = _own_inputs) -> bool:
    """Whether a value is known when weights are loaded."""
    if value.node is None:
        return value.is_param
    inputs = inputs_of(value.node)
    return value.node.op is constant or (
        bool(inputs) and all(is_made_of_params(v, inputs_of) for v in inputs))


def _followers(overlay: Overlay, value: Value) -> set[Node]:
    """Pointwise nodes of the same shape that follow from a value alone."""
    found: set[Node] = set()
    todo = [value]
    while todo:
        for user in overlay.users(todo.pop()):
            if (user and user not in found and is_pointwise(user)
                    and user.out_types[0].shape == value.shape):
                found.add(user)
                todo.append(user.outputs[0])
    return found


def is_pointwise(node: Node) -> bool:
    """Whether a kernel is pointwise, or an Operation whose every kernel is."""
    if node.body is not None:
        return _is_pointwise_body(node.body)
    return node.op.kind == "pointwise"


def _is_pointwise_body(body: Graph) -> bool:
    return all(map(is_pointwise, body.nodes))


RULES: tuple[Rule, ...] = (LinearOfMatmul(), LinearOfProduct(), LinearBias())

LINEARS: tuple[Op, ...] = (linear, matmul_nt)
"""What is split and merged, before and after expansion."""
