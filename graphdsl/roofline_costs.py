"""What the calls of a plan cost: the bytes that they must move, and their additions and
multiplications, for known sizes.

Bytes are those of operands and results in the dtype that they have in memory, each counted once:
rows that are looked up or appended rather than whole tables and caches, of attention the keys and
values that some query sees. Additions and multiplications are those of products, and one for each
number that other maths makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphdsl.call_plan import Call, CallPlan, RepeatCall
from graphdsl.expr import ZERO
from graphdsl.ir import DTYPES, Node, Size, Value, size_value
from graphdsl.layout import SCALE_BYTES
from graphdsl.views import Ref

UNCOUNTED = frozenset({"cast", "constant"})
CACHES = {"kv_append": (0,), "rope_append": (6, 7), "norm_rope_append": (6, 7)}
"""Ops that write rows of caches: the operands that are caches."""
LOOKED_UP = {"embedding": 1, "gather": 0, "take_rows": 0}
"""Ops that read rows of an operand: which one."""


@dataclass(frozen=True)
class Step:
    """The sizes of one step: every dim's value, the tokens that the caches held before it, and the
    bytes that a quantised param (by its place among the params) has in the library's format."""

    dims: Mapping[str, int]
    past: int = 0
    packed: Sequence[int] = ()

    def count(self, shape: Sequence[Size]) -> int:
        """The elements of a shape."""
        return math.prod(size_value(size, self.dims) for size in shape)


@dataclass(frozen=True)
class Cost:
    """`moved` bytes in all, of which `memory` bytes are of weights, caches, inputs and results and
    the rest of the workspace; `operations` on numbers of dtype `kind`."""

    moved: int
    memory: int
    operations: int
    kind: str


@dataclass(frozen=True)
class Place:
    """A call of a plan: its number among all of them, how many turns it has in a step, and where
    the pointers of its body lie in the pointer table (None: in the workspace)."""

    number: int
    call: Call
    turns: int
    table: Mapping[str, int | None]


def places(plan: CallPlan) -> list[Place]:
    """The calls of a plan, repeats opened, in the order of their numbers."""
    first = plan.bodies[0]
    tables: dict[str, Mapping[str, int | None]] = {
        first.name: {leaf.base: leaf.index for leaf in first.leaves}}
    turns = {first.name: 1}
    found, number = [], -1
    for body in plan.bodies:
        table = tables[body.name]
        for call in body.calls:
            number += 1
            if isinstance(call, Call):
                found.append(Place(number, call, turns[body.name], table))
            else:
                turns[call.body] = turns[body.name] * call.turns
                tables[call.body] = _inner_table(call, table)
    return found


def _inner_table(call: RepeatCall, outer: Mapping[str, int | None]) -> dict[str, int | None]:
    """Where the body of a repeat has its state and params in its first turn; what is carried from
    turn to turn is in the workspace."""
    body = call.node.body
    assert body is not None
    first, end = len(body.inputs), len(body.leaves)
    inner: dict[str, int | None] = {f"p{i}": None for i in range(end + len(body.results))}
    for i, place in enumerate((*call.state[0], *call.params[0]), first):
        inner[f"p{i}"] = outer[f"p{place}"]
    return inner


def cost(place: Place, plan: CallPlan, step: Step) -> Cost:
    """What one turn of a call costs."""
    moved = memory = 0
    for ref, size in _traffic(place, plan, step).items():
        moved += size
        memory += size if place.table.get(ref.base) is not None else 0
    return Cost(moved, memory, operations(place.call.node, step), kind(place.call.node))


def kind(node: Node) -> str:
    """The dtype of what a node multiplies: int8 where rows of x are rounded to it, else bf16 where
    x is; f32 for all that is no product."""
    products = [n for n in _inner(node) if n.name in PRODUCTS]
    if not products:
        return "f32"
    formats = [v.type.quant for n in products for v in n.inputs if v.type.quant]
    if any(quant.rounds_rows for quant in formats):
        return "int8"
    return "bf16" if products[0].inputs[0].dtype == "bf16" else "f32"


def operations(node: Node, step: Step) -> int:
    """The additions and multiplications of one turn."""
    return sum(_own_operations(n, step) for n in _inner(node))


def _inner(node: Node) -> Iterator[Node]:
    """The node, or those of its body."""
    if node.body is None:
        yield node
        return
    for inner in node.body.nodes:
        yield from _inner(inner)


def _own_operations(node: Node, step: Step) -> int:
    if node.name in PRODUCTS:
        return PRODUCTS[node.name](node, step)
    if node.op.kind == "pointwise" and node.name not in UNCOUNTED:
        return step.count(node.out_types[0].shape)
    return step.count(node.inputs[0].shape) if node.op.kind == "reduce" else 0


def _product(node: Node, step: Step) -> int:
    """Rows [..., k] by matrices with k rows."""
    return 2 * step.count(node.out_types[0].shape) * step.count(node.inputs[0].shape[-1:])


def _attention(node: Node, step: Step) -> int:
    q, v = node.inputs[0], node.inputs[2]
    batch, tokens, heads, dim = (step.count((size,)) for size in q.shape)
    pairs = sum(end - first for first, end in _seen(node, step, tokens))
    return 2 * batch * heads * (dim + step.count(v.shape[3:])) * pairs


PRODUCTS: dict[str, Callable[[Node, Step], int]] = {
    "matmul_nt": _product, "matmul": _product, "expert_linear": _product, "attention": _attention}


def _seen(node: Node, step: Step, tokens: int) -> list[tuple[int, int]]:
    """The keys that the query of every token sees: the first, and the one after the last."""
    slots = step.count(node.inputs[1].shape[1:2])
    if not node.attr["causal"]:
        return [(0, slots)] * tokens
    begin = step.past if "positions" in node.attr.get("given", ()) else 0
    window = node.attr["window"] or slots
    return [(max(0, at + 1 - window), min(at + 1, slots)) for at in range(begin, begin + tokens)]


def _traffic(place: Place, plan: CallPlan, step: Step) -> dict[Ref, int]:
    """The bytes of every operand and result of a call."""
    call = place.call
    partly = _partly_read(place, plan, step)
    sizes: dict[Ref, int] = {}
    for i, (value, ref) in enumerate(zip(call.node.inputs, call.inputs, strict=True)):
        whole = _packed(ref, place, plan, step) if value.type.quant else _held(ref, step)
        sizes[ref] = partly.get(i, whole)
    for ref in call.outputs:
        sizes.setdefault(ref, _held(ref, step))
    return sizes


def _held(ref: Ref, step: Step) -> int:
    """The bytes of a view; what is repeated along an axis counts once."""
    sizes = [size for size, stride in zip(ref.shape, ref.strides, strict=True) if stride != ZERO]
    return step.count(sizes) * DTYPES[ref.dtype]


def _packed(ref: Ref, place: Place, plan: CallPlan, step: Step) -> int:
    """The bytes of a quantised param in the library's format."""
    index = place.table[ref.base]
    assert index is not None, ref
    return step.packed[index - sum(port.kind != "param" for port in plan.ports[:index])]


def _partly_read(place: Place, plan: CallPlan, step: Step) -> dict[int, int]:
    """The bytes of operands that are not read as a whole, or written instead, by their number."""
    call = place.call
    if call.op in LOOKED_UP:
        return {LOOKED_UP[call.op]: _looked_up(place, plan, step)}
    if call.op == "expert_linear":
        experts = step.count(call.inputs[1].shape[:1])
        chosen = min(experts, step.count(call.inputs[2].shape))
        quantised = call.node.inputs[1].type.quant
        whole = (_packed(call.inputs[1], place, plan, step) if quantised
                 else _held(call.inputs[1], step))
        return {1: whole * chosen // experts}
    if call.op in CACHES:
        tokens = step.count(call.node.inputs[0 if call.op != "kv_append" else 1].shape[1:2])
        return {i: _cache_rows(call.node.inputs[i], tokens, step) for i in CACHES[call.op]}
    attention = next((n for n in _inner(call.node) if n.name == "attention"), None)
    if call.op not in ("attention", "attention_epilogue") or attention is None:
        return {}
    seen = _seen(attention, step, step.count(attention.inputs[0].shape[1:2]))
    rows = max(end for _, end in seen) - min(first for first, _ in seen)
    leaves = call.node.body.leaves if call.node.body else attention.inputs
    return {leaves.index(v): _cache_rows(v, rows, step) for v in attention.inputs[1:3]}


def _looked_up(place: Place, plan: CallPlan, step: Step) -> int:
    """The bytes of the rows that are looked up."""
    at = LOOKED_UP[place.call.op]
    ref, table = place.call.inputs[at], place.call.node.inputs[at]
    found = step.count(place.call.node.out_types[0].shape)
    if table.type.quant is None:
        return found * DTYPES[ref.dtype]
    return _packed(ref, place, plan, step) * found // step.count(table.shape)


def _cache_rows(cache: Value, rows: int, step: Step) -> int:
    """The bytes of so many slots of every sequence of a cache [batch, slots, heads, dim]."""
    batch, _, heads, dim = cache.shape
    layout = cache.type.layout
    scale = SCALE_BYTES if layout and layout.storage == "int8" else 0
    width = step.count((dim,)) * DTYPES[cache.type.stored] + scale
    return step.count((batch, heads)) * rows * width


__all__ = ["Cost", "Place", "Step", "cost", "kind", "operations", "places"]
