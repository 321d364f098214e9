"""A lowered graph as ordered calls on views of buffers.

Views cost nothing, a concat is written in place by its producers, and every workspace buffer has
one interval on one clock that also runs through the bodies of repeats. Sizes are symbolic, so the
placement itself happens when a plan is made; here the expressions and intervals are collected.
Calls that do not depend on each other share a tick, and a barrier stands between ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from graphdsl.expr import dense_strides, product
from graphdsl.ir import DTYPES, Dim, Graph, Node, Size, Value, terms, upper_bound
from graphdsl.op import Op
from graphdsl.packing import PackedInputs, packed_params, separate_plain_uses
from graphdsl.passes.repeat import Operands, operands_of
from graphdsl.plan import Plan, dims_of, ports_of
from graphdsl.views import Ref, concat_pieces, leaf_ref, reshaped_strides, view

IN_PLACE = ("concat",)
NEVER = 1 << 60
COPY = Op("copy", lambda x: x)


class Lowering(PackedInputs, Protocol):
    """What the planner asks a backend about a node."""

    def needs_copy(self, node: Node, index: int, ref: Ref) -> bool:
        """Whether the kernel cannot read this input where it lies."""

    def can_write(self, node: Node, ref: Ref) -> bool:
        """Whether the kernel can write a result there: in the rows of a larger one, for example."""

    def scratch(self, node: Node, inputs: Sequence[Ref], outputs: Sequence[Ref]) -> str:
        """C text of the bytes of scratch that a call needs, or an empty string."""


@dataclass
class Buffer:
    """Workspace: C text of its bytes, and the first and last tick at which it is in use."""

    bytes: str
    start: int
    end: int


@dataclass(frozen=True)
class Call:
    """One kernel: `barrier` says that it waits for the calls before it."""

    op: str
    node: Node
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    scratch: Ref | None
    barrier: bool


@dataclass(frozen=True)
class RepeatCall:
    """A body run for several turns. Carried values go back and forth between two buffers each;
    the first turn reads `initial`, the last writes `final`. `state` and `params` are places in
    the pointer table, one row a turn."""

    node: Node
    body: str
    turns: int
    initial: tuple[Ref, ...]
    final: tuple[Ref, ...]
    hold: tuple[tuple[int, int], ...]
    invariant: tuple[Ref, ...]
    state: tuple[tuple[int, ...], ...]
    params: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Leaf:
    """A pointer that a body reads from its table."""

    base: str
    index: int
    value: Value
    packed: bool


@dataclass
class Body:
    """One generated function."""

    name: str
    leaves: list[Leaf] = field(default_factory=list)
    buffers: dict[int, str] = field(default_factory=dict)
    """Workspace buffers that the body names, with the dtype that it sees them as."""
    calls: list[Call | RepeatCall] = field(default_factory=list)


@dataclass(frozen=True)
class CallPlan(Plan):
    """A plan of calls that a backend renders one by one."""

    buffers: tuple[Buffer, ...]
    bodies: tuple[Body, ...]

    @property
    def workspace(self) -> tuple[str, ...]:
        return tuple(b.bytes for b in self.buffers)


def make_plan(graph: Graph, recipes: Mapping[str, Graph], lowering: Lowering,
              order: Callable[[Graph], Iterable[Node]] = lambda g: g.nodes) -> CallPlan:
    """The calls and buffers of `graph`, whose nodes run in the order that `order` gives."""
    graph = separate_plain_uses(graph, lowering)
    planner = _Planner(lowering, order, packed_params(graph, lowering))
    _BodyPlanner(planner, graph, "run").plan()
    dims, step_dims = dims_of(graph, planner.dims)
    return CallPlan(graph, recipes, ports_of(graph, planner.packed), dims, step_dims,
                    tuple(planner.buffers), tuple(planner.bodies))


@dataclass
class _Planner:
    lowering: Lowering
    order: Callable[[Graph], Iterable[Node]]
    packed: frozenset[Value]
    buffers: list[Buffer] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    dims: set[Dim] = field(default_factory=set)
    tick: int = 0

    def buffer(self, text: str) -> int:
        self.buffers.append(Buffer(text, NEVER, -1))
        return len(self.buffers) - 1

    def touch(self, number: int | None) -> None:
        if number is not None:
            held = self.buffers[number]
            held.start, held.end = min(held.start, self.tick), max(held.end, self.tick)


def byte_text(shape: Sequence[Size], dtype: str) -> str:
    """C text of the bytes of a buffer; step dims count with their upper bound."""
    bounded = (s if not any(d.source for d in terms(s)) else upper_bound(s) for s in shape)
    return str(product(bounded) * DTYPES[dtype])


class _BodyPlanner:
    """Plans one body: the graph itself or that of a repeat."""

    def __init__(self, planner: _Planner, graph: Graph, name: str) -> None:
        self.p = planner
        self.graph = graph
        self.body = Body(name)
        self.refs: dict[Value, Ref] = {}
        self.wanted: dict[Value, Ref] = {}
        self.written: set[str] = set()
        self.read: set[str] = set()
        self.barrier_due = name != "run"
        planner.bodies.append(self.body)

    def plan(self) -> None:
        for i, value in enumerate(self.graph.leaves):
            self.refs[value] = self._leaf(f"p{i}", i, value)
        count = len(self.graph.leaves)
        self.results = [self._leaf(f"p{count + i}", count + i, value)
                        for i, value in enumerate(self.graph.results)]
        for value, ref in zip(self.graph.results, self.results, strict=True):
            self._want(value, ref)
        nodes = tuple(self.p.order(self.graph))
        for node in reversed(nodes):
            if node.name in IN_PLACE:
                self._scatter(node)
            if node.name == "all_reduce":
                self._sum_in_place(node)
        for node in nodes:
            self.p.dims |= {d for v in node.outputs for s in v.shape for d in terms(s)}
            self._node(node)
        for value, ref in zip(self.graph.results, self.results, strict=True):
            if self.refs[value] != ref:
                self._copy(self.refs[value], ref, value)

    def _leaf(self, base: str, index: int, value: Value) -> Ref:
        self.body.leaves.append(Leaf(base, index, value, value in self.p.packed))
        return leaf_ref(base, value.type)

    def _want(self, value: Value, ref: Ref) -> None:
        """`value` is to be written to `ref` by whoever makes it, through reshapes too."""
        node = value.node
        if node is None or value in self.wanted or node.op.aliases:
            return
        if node.name == "repeat" and value.index >= node.attr["carried"]:
            return
        if node.op.kind == "view":
            source = node.inputs[0]
            strides = reshaped_strides(ref, source.shape) if node.name == "reshape" else None
            if strides is not None and self.graph.users[source] == [node]:
                self._want(source, replace(ref, shape=source.shape, strides=strides))
        made_in_place = node.op.kind == "view" or node.name in IN_PLACE
        if made_in_place or self.p.lowering.can_write(node, ref):
            self.wanted[value] = ref

    def _scatter(self, node: Node) -> None:
        """The operands of a concat are written where they belong, if nobody else decides."""
        whole = self._out(node.outputs[0])
        for value, ref in zip(node.inputs, concat_pieces(node, whole), strict=True):
            if self.graph.users[value] == [node] and value.node is not None:
                self._want(value, ref)

    def _sum_in_place(self, node: Node) -> None:
        """What a sum over ranks alone reads is written where the sum is to be."""
        value = node.inputs[0]
        if self.graph.users[value] == [node] and value.node is not None:
            self._want(value, self._out(node.outputs[0]))

    def _out(self, value: Value) -> Ref:
        """Where `value` is written: a place that is wanted, or a buffer of its own."""
        if value not in self.wanted:
            number = self.p.buffer(byte_text(value.shape, value.dtype))
            self.wanted[value] = leaf_ref(self._name(number, value.dtype), value.type, number)
        self.refs[value] = self.wanted[value]
        return self.refs[value]

    def _name(self, number: int, dtype: str) -> str:
        self.body.buffers[number] = dtype
        return f"b{number}"

    def _node(self, node: Node) -> None:
        if node.name == "constant":
            return
        if node.op.kind == "view":
            self._view(node)
        elif node.name in IN_PLACE:
            self._gather_pieces(node)
        elif node.name == "repeat":
            self._repeat(node)
        else:
            self._call(node)

    def _view(self, node: Node) -> None:
        source = self.refs[node.inputs[0]]
        seen = view(node, source)
        if seen is None:
            seen = (self._reshaped_copy(node, source),)
        self.refs.update(zip(node.outputs, seen, strict=True))

    def _reshaped_copy(self, node: Node, source: Ref) -> Ref:
        """A reshape that no strides express: copied to where its value is wanted, if there the
        shape of the source is a view."""
        target = self.wanted.get(node.outputs[0])
        strides = reshaped_strides(target, source.shape) if target else None
        if target is not None and strides is not None:
            self._copy(source, replace(target, shape=source.shape, strides=strides),
                       node.outputs[0])
            return target
        seen = view(node, self._dense_copy(source, node.inputs[0]))
        assert seen is not None, node
        return seen[0]

    def _gather_pieces(self, node: Node) -> None:
        """What a concat's producers could not write in place is copied."""
        whole = self.wanted[node.outputs[0]]
        for value, piece in zip(node.inputs, concat_pieces(node, whole), strict=True):
            if self.refs[value] != piece:
                self._copy(self.refs[value], piece, value)
        self.refs[node.outputs[0]] = whole

    def _call(self, node: Node) -> None:
        inputs = []
        for i, value in enumerate(node.inputs):
            ref = self.refs[value]
            if value not in self.p.packed and self.p.lowering.needs_copy(node, i, ref):
                ref = self._dense_copy(ref, value)
            inputs.append(ref)
        aliases = dict(operation_aliases(node))
        outputs = []
        for i, value in enumerate(node.outputs):
            if i in aliases:
                self.refs[value] = self.refs[node.inputs[aliases[i]]]
                outputs.append(self.refs[value])
            else:
                outputs.append(self._out(value))
        self._emit(node.name, node, inputs, outputs)

    def _emit(self, op: str, node: Node, inputs: Sequence[Ref], outputs: Sequence[Ref]) -> None:
        reads, writes = {r.base for r in inputs}, {r.base for r in outputs}
        hazard = (self.written & (reads | writes)) | (self.read & writes)
        barrier = bool(hazard) or self.barrier_due
        if barrier:
            self.p.tick += 1
            self.read, self.written, self.barrier_due = set(), set(), False
        self.read |= reads
        self.written |= writes
        for ref in (*inputs, *outputs):
            self.p.touch(ref.buffer)
        scratch = None
        text = self.p.lowering.scratch(node, inputs, outputs) if op != "copy" else ""
        if text:
            number = self.p.buffer(text)
            scratch = Ref(self._name(number, "bool"), "bool", (), (), buffer=number)
            self.p.touch(number)
        self.body.calls.append(Call(op, node, tuple(inputs), tuple(outputs), scratch, barrier))

    def _copy(self, source: Ref, target: Ref, value: Value) -> None:
        made = value.node
        node = Node(COPY, (value,), (), (value.type,), loc=value.loc,
                    scope=made.scope if made else "", origin=made.origin if made else ())
        self._emit("copy", node, [source], [target])

    def _dense_copy(self, source: Ref, value: Value) -> Ref:
        number = self.p.buffer(byte_text(source.shape, source.dtype))
        target = Ref(self._name(number, source.dtype), source.dtype, source.shape,
                     dense_strides(source.shape), buffer=number)
        self._copy(source, target, value)
        return target

    def _repeat(self, node: Node) -> None:
        assert node.body is not None
        operands = operands_of(node, node.inputs)
        initial = [self._dense(v) for v in operands.carried]
        invariant = [self._dense(v) for v in operands.invariant]
        carried = node.outputs[: len(initial)]
        self.p.tick += 1
        start = self.p.tick
        final = [self._out(v) for v in carried]
        hold = tuple((self.p.buffer(byte_text(v.shape, v.dtype)),
                      self.p.buffer(byte_text(v.shape, v.dtype))) for v in carried)
        for (a, b), v in zip(hold, carried, strict=True):
            self._name(a, v.dtype)
            self._name(b, v.dtype)
        name = f"turn{len(self.p.bodies)}"
        _BodyPlanner(self.p, node.body, name).plan()
        for number in (r.buffer for r in (*initial, *invariant, *final)):
            if number is not None:
                self.p.buffers[number].start = min(self.p.buffers[number].start, start)
            self.p.touch(number)
        for number in (n for pair in hold for n in pair):
            self.p.buffers[number] = Buffer(self.p.buffers[number].bytes, start, self.p.tick)
        self._keep_state(node, operands)
        place = {v: i for i, v in enumerate(self.graph.leaves)}
        self.body.calls.append(RepeatCall(
            node, name, node.attr["turns"], tuple(initial), tuple(final), hold, tuple(invariant),
            tuple(tuple(place[self._root(v)] for v in row) for row in operands.state),
            tuple(tuple(place[v] for v in row) for row in operands.params)))
        self.barrier_due = True

    def _dense(self, value: Value) -> Ref:
        ref = self.refs[value]
        return ref if ref.is_dense else self._dense_copy(ref, value)

    def _keep_state(self, node: Node, operands: Operands[Value]) -> None:
        flat = [v for row in operands.state for v in row]
        for new, old in zip(node.outputs[len(operands.carried):], flat, strict=True):
            self.refs[new] = self.refs[old]

    def _root(self, value: Value) -> Value:
        """The state leaf whose memory `value` is."""
        base = self.refs[value].base
        return next(leaf.value for leaf in self.body.leaves if leaf.base == base)


def operation_aliases(node: Node) -> tuple[tuple[int, int], ...]:
    """(output, input) pairs that share memory: a kernel's own, and those of an Operation's body."""
    if node.op.aliases or node.body is None:
        return node.op.aliases
    pairs = []
    for i, value in enumerate(node.body.outputs):
        root = aliased_leaf(value)
        if root is not None and root is not value:
            pairs.append((i, node.body.leaves.index(root)))
    return tuple(pairs)


def aliased_leaf(value: Value) -> Value | None:
    """The leaf whose memory `value` is, through aliasing kernels."""
    while value.node is not None:
        source = dict(operation_aliases(value.node)).get(value.index)
        if source is None:
            return None
        value = value.node.inputs[source]
    return value
