"""One phase of a program: its parts as atb.Graphs, and which tensor of the program every tensor of
a graph is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node, Value
from graphdsl.ops.attention import attention
from graphdsl.ops.collectives import all_reduce
from graphdsl.ops.kv import kv_append
from graphdsl.ops.position import rope
from graphdsl.passes.repeat import REPEAT, operands_of

from . import atb
from .angles import inside
from .atb import Phase, Run, Tensor
from .lowering_attention import lower_append, lower_attention, lower_rope, pairs_of
from .lowering_graph import (
    Builder,
    Seen,
    Setting,
    cache_shape,
    free_name,
    identifier,
    source_of,
    weight,
)
from .lowering_math import GATHER, RULES, index_of
from .lowering_parallel import joined_linears, lower_all_reduce, lower_linear_parallel
from .lowering_parts import Part, live_nodes, parts_of

HINTS = {
    "gelu": "gelu_tanh is what ATB has",
    "sigmoid": "silu is what ATB has",
    "matmul": "the ascend backend multiplies by params: linear(x, w)",
    "expert_linear": "mixtures of experts run with --backend cpu",
    "topk": "mixtures of experts run with --backend cpu",
    "relayout": "caches are results only by way of the state",
    "exp": "softmax, silu and gelu_tanh are what ATB has",
}
"""For what ATB has not, what may be had instead."""


@dataclass(frozen=True)
class Wide:
    """Angles of full width: a value that stands for them, the row of the table they come from if
    they do, and a rope that reads them."""

    value: Value
    row: Node | None
    reader: Node


Wides = Mapping[tuple[Value, bool], Wide]


@dataclass
class _Built:
    """A part and its nodes in ATB."""

    part: Part
    builder: Builder


def phase_of(graph: Graph, setting: Setting, wides: Wides) -> tuple[Phase, dict[str, Tensor]]:
    """The phase of `setting`, and the tensors that its graphs leave to each other."""
    built: list[_Built] = []
    plain = _plain(graph)
    for part in parts_of(graph):
        node = part.repeat
        made = (_Built(part, _of_repeat(node, setting, wides)) if node
                else _Built(part, _of_nodes(part, setting, wides)))
        built.append(made)
        setting.outside.update(_new(made, setting, plain))
    return _Binding(graph, setting, built, plain).phase()


def _of_nodes(part: Part, setting: Setting, wides: Wides) -> Builder:
    builder = Builder(setting)
    lower_nodes(builder, part.nodes, wides)
    if part.name == "begin":
        for (half, interleaved), wide in wides.items():
            _widen(builder, half, interleaved, wide)
    return builder


def _of_repeat(node: Node, setting: Setting, wides: Wides) -> Builder:
    """The body of a repeat. What its leaves are differs from turn to turn, but not their shapes."""
    assert node.body is not None
    operands = operands_of(node, node.inputs)
    outer = (*operands.carried, *operands.invariant)
    inner = dict(setting.outside)
    for leaf, value in zip(node.body.inputs, outer, strict=True):
        given = inner.get(source_of(value))
        if given is not None:
            inner[leaf] = replace(given, name=leaf.name or given.name)
    for leaf in node.body.state:
        inner[leaf] = Tensor(leaf.name, leaf.dtype, cache_shape(leaf.type, setting.soc),
                             setting.cache_format)
    for leaf in node.body.params:
        inner[leaf] = weight(leaf)
    builder = Builder(replace(setting, outside=inner), inside(node))
    lower_nodes(builder, live_nodes(node.body, inside(node)), wides)
    return builder


def lower_nodes(b: Builder, nodes: Sequence[Node], wides: Wides) -> None:
    """ATB's operations for nodes in the order in which they run."""
    _check_known(nodes)
    pairs = pairs_of(nodes)
    joined = joined_linears(nodes, b.setting.soc)
    for node in nodes:
        if node in pairs.waiting or node in joined.values():
            continue
        if node.op is rope:
            angles = [wides[b.resolve(v), node.attr["interleaved"]].value for v in node.inputs[1:]]
            lower_rope(b, node, pairs.ropes.get(node), angles)
        elif node.op is kv_append:
            lower_append(b, *_pair(node, pairs.appends))
        elif node.op is attention:
            lower_attention(b, node)
        elif node in joined:
            lower_linear_parallel(b, node, joined[node])
        elif node.op is all_reduce:
            lower_all_reduce(b, node)
        else:
            RULES[node.name](b, node)


def _check_known(nodes: Sequence[Node]) -> None:
    """Raises GraphError for a node that ATB has not, rather for one that tells the user most."""
    unknown = [n for n in nodes if n.op not in (rope, kv_append, attention, all_reduce)
               and n.name not in RULES]
    if unknown:
        node = next((n for n in unknown if n.name in HINTS), unknown[0])
        raise GraphError(f"{node.name}: ATB has no such operation", node.loc,
                         HINTS.get(node.name, "--backend cpu has it"))


def _pair(node: Node, appends: Mapping[Node, tuple[Node, Node]]) -> tuple[Node, Node]:
    if node not in appends:
        raise GraphError("what is appended to a cache is read by no attention of the same layer",
                         node.loc, "the ascend backend writes k and v of one attention together")
    return appends[node]


def _widen(b: Builder, half: Value, interleaved: bool, wide: Wide) -> None:
    """Angles of full width, once a step: rows of a table, or every angle that is given twice."""
    value, like = wide.value, wide.reader
    if wide.row is not None:
        positions = index_of(wide.row.inputs[0])
        table = wide.row.inputs[1]
        limit = table.shape[0]
        assert positions is not None
        assert isinstance(limit, int)
        lead = b.setting.axes.matrix(positions)
        picks = b.prepared("angles", lead, (positions,), limit=limit)
        shape = b.setting.axes.matrix(value)
        gathered = (b.output(value) if value.dtype == "f32" else
                    b.new(f"{value.name}_f32", shape, "f32"))
        b.emit("Gather", GATHER, [b.read(table), picks], [gathered], wide.row)
        if value.dtype != "f32":
            b.cast(Seen(gathered, shape), b.output(value), wide.row)
        return
    source = source_of(half)
    if source not in b.made and source not in b.setting.outside:
        raise GraphError("the angles of rope are made where layers are, not before them", like.loc,
                         "compute them of an input of positions [batch, tokens] alone, or take cos "
                         "and sin as inputs")
    x = b.matrix(half, 1 if interleaved else None)
    narrow = b.new(f"{value.name}_{value.dtype}", x.shape, value.dtype)
    b.cast(x, narrow, like)
    seen = Seen(narrow, x.shape)
    rows, columns = x.shape
    assert isinstance(columns, int)
    twice = b.new(f"{value.name}_wide", (rows, 2 * columns), value.dtype)
    b.made[value] = twice
    b.emit("Concat", {"concatDim": 1}, [seen, seen], [twice], like)


def _plain(graph: Graph) -> frozenset[Value]:
    """Values that have to lie as matrices: results, what a repeat carries, and those of attention,
    which lie in one way in one phase and in another in the other."""
    carried = (v for node in graph.nodes if node.op is REPEAT
               for v in operands_of(node, node.inputs).carried)
    attended = (node.outputs[0] for node in graph.nodes if node.op is attention)
    return frozenset(map(source_of, (*graph.results, *carried, *attended)))


def _new(made: _Built, setting: Setting, plain: frozenset[Value]) -> dict[Value, Tensor]:
    """What others may read of a part, by names that nothing else has."""
    taken = {*setting.ports, *(tensor.name for tensor in setting.outside.values())}
    found: dict[Value, Tensor] = {}
    for value, tensor in _left(made, setting, plain):
        name = free_name(tensor.name, taken)
        found[value] = replace(tensor, name=name)
        taken |= {name, *(f"{name}_{turn}" for turn in "ab")}
    return found


def _left(made: _Built, setting: Setting,
          plain: frozenset[Value]) -> Iterator[tuple[Value, Tensor]]:
    """The values that a part makes, each as it lies, or has to."""
    title, b = made.part.name, made.builder
    if made.part.repeat:
        values = [v for v in made.part.repeat.outputs if v.type.layout is None]
        for i, value in enumerate(values):
            yield value, Tensor(f"{title}_{i}", value.dtype, setting.axes.matrix(value))
        return
    for value, tensor in b.made.items():
        if tensor not in b.inputs:
            shape = setting.axes.matrix(value) if value in plain else tensor.shape
            name = f"{title}_{tensor.name}" if title else tensor.name
            yield value, Tensor(name, value.dtype, shape)


@dataclass
class _Binding:
    """Names of the program for what its graphs read and write."""

    graph: Graph
    setting: Setting
    built: list[_Built]
    plain: frozenset[Value]
    kept: dict[str, Tensor] = field(default_factory=dict)

    def phase(self) -> tuple[Phase, dict[str, Tensor]]:
        wanted = self.wanted()
        last = [made for made in self.built if made.builder.nodes and not made.part.repeat][-1:]
        self.check_copied(last)
        runs: list[Run] = []
        for made in self.built:
            if made.part.repeat is not None:
                runs += self.turns(made, made.part.repeat)
                continue
            b = made.builder
            values = [v for v, t in b.made.items() if v in wanted and t not in b.inputs]
            outputs = {self.name(v): v for v in values} | (self.copies() if made in last else {})
            tensors = _published(b, outputs.values(), self.plain)
            if b.nodes:
                graph = self.made_graph(made, tensors)
                runs.append(Run(graph, (*self.sources(b, self.name), *outputs)))
        return Phase(self.setting.phase, tuple(runs)), self.kept

    def wanted(self) -> set[Value]:
        """What a part has to leave to others, or to the caller."""
        found = {source_of(v) for v in self.graph.results}
        for made in self.built:
            sources = [v for v in made.builder.inputs.values() if isinstance(v, Value)]
            if made.part.repeat is not None:
                outer = self.outer(made.part.repeat, 0)
                sources = [outer.get(v, v) for v in sources]
                sources += operands_of(made.part.repeat, made.part.repeat.inputs).carried
            found.update(map(source_of, sources))
        return found

    def results(self) -> dict[Value, str]:
        """The result that the memory of a value is."""
        names: dict[Value, str] = {}
        for i, value in enumerate(self.graph.results):
            source = source_of(value)
            if source.node is not None:
                names.setdefault(source, f"output{i}")
        return names

    def copies(self) -> dict[str, Value]:
        """The results that lie in the memory of an input or of another result, and are copied."""
        own = self.results()
        sources = ((f"output{i}", source_of(v)) for i, v in enumerate(self.graph.results))
        return {name: v for name, v in sources if own.get(v) != name}

    def check_copied(self, last: Sequence[_Built]) -> None:
        """Raises GraphError for results that are copies where no graph could copy them."""
        for name, value in () if last else self.copies().items():
            raise GraphError(f"{self.graph.name}: {name} is '{value.name}' as it is, and the "
                             "ascend backend builds no graphs without operations", value.loc,
                             "return what is computed of it")

    def name(self, value: Value) -> str:
        """The tensor of the program that a value is."""
        value = source_of(value)
        if value in self.graph.leaves:
            return value.name
        result = self.results().get(value)
        return result or self.keep(self.setting.outside[value])

    def keep(self, tensor: Tensor) -> str:
        self.kept[tensor.name] = tensor
        return tensor.name

    def sources(self, b: Builder, name: Callable[[Value], str]) -> list[str]:
        return [v if isinstance(v, str) else name(v) for v in b.inputs.values()]

    def made_graph(self, made: _Built, outputs: Sequence[Tensor]) -> atb.Graph:
        """A part as a graph, whose name has the phase where the phase changes it."""
        b = made.builder
        inner = made.part.repeat.body.nodes if made.part.repeat and made.part.repeat.body else ()
        phased = any(n.op in (attention, kv_append) for n in (*made.part.nodes, *inner))
        parts = (self.graph.name, made.part.name, self.setting.phase if phased else "")
        name = identifier("_".join(part for part in parts if part))
        return atb.Graph(name, tuple(b.inputs), tuple(outputs), tuple(b.nodes))

    def outer(self, node: Node, turn: int) -> dict[Value, Value]:
        """What the leaves of a repeat's body are in a turn, but for what is carried."""
        assert node.body is not None
        operands = operands_of(node, node.inputs)
        state = operands.state[turn] if operands.state else ()
        values = (*operands.invariant, *state, *operands.params[turn])
        return dict(zip(node.body.leaves[len(operands.carried):], values, strict=True))

    def turns(self, made: _Built, node: Node) -> list[Run]:
        """A run a turn. What is carried goes from one tensor to another, for no graph reads what
        it writes."""
        body = node.body
        assert body is not None
        operands = operands_of(node, node.inputs)
        b, carried = made.builder, body.inputs[:len(operands.carried)]
        results = [source_of(v) for v in body.outputs[:len(carried)]]
        graph = self.made_graph(made, _published(b, results, frozenset(results)))
        holds = dict(zip(carried, map(self.name, operands.carried), strict=True))
        runs = []
        for turn in range(len(operands.params)):
            names = self.outer(node, turn)

            def bound(leaf: Value, holds: dict[Value, str] = holds,
                      names: dict[Value, Value] = names) -> str:
                return holds[leaf] if leaf in holds else self.name(names.get(leaf, leaf))

            last = turn == len(operands.params) - 1
            written = [self.name(node.outputs[i]) if last else self.between(node, i, turn)
                       for i in range(len(carried))]
            runs.append(Run(graph, (*self.sources(b, bound), *written)))
            holds = dict(zip(carried, written, strict=True))
        return runs

    def between(self, node: Node, index: int, turn: int) -> str:
        """One of the two tensors that a carried value goes through."""
        like = self.setting.outside[node.outputs[index]]
        return self.keep(replace(like, name=f"{like.name}_{'ab'[turn % 2]}"))


def _published(b: Builder, values: Iterable[Value], plain: frozenset[Value]) -> list[Tensor]:
    """The tensors that a graph leaves behind, each of its own: what is an input too, or no matrix
    where that is wanted, is copied."""
    found: list[Tensor] = []
    for value in values:
        tensor = b.tensor(value)
        shape = b.setting.axes.matrix(value) if value in plain else tensor.shape
        if tensor.shape != shape or tensor in found or tensor in b.inputs:
            out = b.new(f"{tensor.name}_copy", shape, tensor.dtype)
            b.nodes.append(_copy(tensor, out, b.nodes[-1], value))
            tensor = out
        found.append(tensor)
    return found


def _copy(tensor: Tensor, out: Tensor, last: atb.Node, value: Value) -> atb.Node:
    view = None if tensor.shape == out.shape else out.shape
    fields = (("elewiseType", atb.Enum("ELEWISE_MULS")), ("mulsParam.varAttr", 1.0))
    return atb.Node("Elewise", fields, (tensor,), (out,), (view,), value.loc or last.loc, "copy")


__all__ = ["Wide", "phase_of"]
