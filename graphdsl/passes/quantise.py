"""Formats of quantised weights: from the weights that a user names to the params that kernels
read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from graphdsl.errors import GraphError, Loc
from graphdsl.ir import FLOATS, Graph, Node, TensorType, Value
from graphdsl.passes.base import Fired, Missed, Result, Target
from graphdsl.passes.repeat import REPEAT, make_repeat, operands_of
from graphdsl.passes.rewrite import substitute
from graphdsl.quant import Quant, common

Choose = Callable[[str, TensorType], "Quant | None"]
"""The format of a weight of this name and type; None leaves it as it is."""
Recipes = Mapping[str, Graph]

FEWEST_ROWS = 16
"""A smaller weight is no part of the time, and a router of experts needs all of its digits."""
READERS = {"matmul_nt": 1, "embedding": 1}
"""Ops that read quantised weights, and the operand that the weight is."""


def quantised(graph: Graph, choose: Choose) -> Graph:
    """A traced graph whose weights [n, k] are asked to have the formats that `choose` gives. Those
    that something else than linears and embeddings reads go back to their dtype in the pass
    `quantise`, which says why."""
    new: dict[Value, Value] = {}
    for param in graph.params:
        is_matrix = len(param.shape) == 2 and param.dtype in FLOATS
        quant = choose(param.name, param.type) if is_matrix else None
        if quant != param.type.quant:
            new[param] = replace(param, type=replace(param.type, quant=quant))
    if not new:
        return graph
    return substitute(graph, new, params=tuple(new.get(p, p) for p in graph.params))


def check_quants(target: Target) -> None:
    """Raises GraphError for a backend without quantised weights."""
    if not target.quants:
        raise GraphError(f"the {target.name} backend has no quantised weights",
                         hint="leave --quantize (quantize=) out: weights keep their dtype")


@dataclass(frozen=True)
class Quantise:
    """Moves the formats of weights to the params that kernels read: a merged weight, and all turns
    of one, have the least format that holds each of theirs. A weight that is read in another way,
    or has rows that are no whole groups, keeps its dtype, and so does what is joined to it."""

    name: ClassVar[str] = "quantise"

    def run(self, graph: Graph, target: Target) -> Result:
        return self.run_with(graph, {}, target)

    def run_with(self, graph: Graph, recipes: Recipes, target: Target) -> Result:
        """As `run`, where `recipes` makes some of the params."""
        sources = {p: _sources(p, recipes) for p in graph.params}
        if not any(v.type.quant for found in sources.values() for v in found):
            return Result(graph)
        check_quants(target)
        reads = Reads()
        reads.collect(graph)
        formats: dict[Value, Quant | None] = {}
        fired: list[Fired] = []
        missed: list[Missed] = []
        for joined in _components(graph, sources, reads):
            quants = [v.type.quant for p in joined for v in sources[p]]
            if not any(quants):
                continue
            reason = next(_reasons(joined, sources, recipes, reads), None)
            loc, scope = reads.place(joined[0])
            if reason is None:
                quant = common([q for q in quants if q])
                formats.update(dict.fromkeys(joined, quant))
                fired.append(Fired("Quantise", loc, f"{_named(joined, sources)}, {quant}"))
            else:
                formats.update(dict.fromkeys(joined))
                missed.append(Missed("Quantise", loc, scope,
                                     f"{_named(joined, sources)}: {reason}"))
        return Result(_with_formats(graph, formats), tuple(fired), tuple(missed))


def _sources(param: Value, recipes: Recipes) -> tuple[Value, ...]:
    recipe = recipes.get(param.name)
    return recipe.params if recipe else (param,)


@dataclass
class Reads:
    """Who reads params: those of a graph, and those of its repeats' bodies."""

    nodes: dict[Value, list[Node | None]] = field(default_factory=dict)
    turns: dict[Value, list[Value]] = field(default_factory=dict)
    """Of a param of a graph, those of the bodies that it is the param of a turn of."""

    def collect(self, graph: Graph) -> None:
        """Adds the readers of a graph's params; None stands for the graph's outputs."""
        for param in graph.params:
            for node in graph.users.get(param, []):
                if node is None or node.op is not REPEAT:
                    self.nodes.setdefault(param, []).append(node)
        for node in graph.nodes:
            if node.op is REPEAT and node.body is not None:
                self._collect_repeat(node, node.body)

    def _collect_repeat(self, node: Node, body: Graph) -> None:
        operands = operands_of(node, node.inputs)
        for row in operands.params:
            for given, param in zip(row, body.params, strict=True):
                self.turns.setdefault(given, []).append(param)
        for value in (*operands.carried, *operands.invariant):
            if value.is_param:
                self.nodes.setdefault(value, []).append(node)
        self.collect(body)

    def all(self, param: Value) -> Iterator[tuple[Value, Node | None]]:
        """A param or what it is in a body, with each of its readers."""
        for node in self.nodes.get(param, []):
            yield param, node
        for inner in dict.fromkeys(self.turns.get(param, [])):
            yield from self.all(inner)

    def place(self, param: Value) -> tuple[Loc | None, str]:
        """The line and scope of the first reader."""
        node = next((n for _, n in self.all(param) if n is not None), None)
        return (node.loc, node.scope) if node else (None, "")


def _components(graph: Graph, sources: Mapping[Value, Sequence[Value]],
                reads: Reads) -> Iterator[list[Value]]:
    """Params that have to have one format: the turns of one weight, and all that is made of one
    weight of the user's."""
    homes: dict[Value | str, list[Value]] = {}
    links: dict[Value, list[Value | str]] = {}
    for param in graph.params:
        names: list[Value | str] = [v.name for v in sources[param]]
        links[param] = names + list(dict.fromkeys(reads.turns.get(param, [])))
        for link in links[param]:
            homes.setdefault(link, []).append(param)
    seen: set[Value] = set()
    for first in graph.params:
        if first in seen:
            continue
        joined, stack = [], [first]
        seen.add(first)
        while stack:
            param = stack.pop()
            joined.append(param)
            near = [p for link in links[param] for p in homes[link] if p not in seen]
            near = list(dict.fromkeys(near))
            seen.update(near)
            stack += reversed(near)
        yield joined


def _reasons(joined: Sequence[Value], sources: Mapping[Value, Sequence[Value]],
             recipes: Recipes, reads: Reads) -> Iterator[str]:
    """Why params that have to have one format cannot have a quantised one."""
    quants = [v.type.quant for p in joined for v in sources[p] if v.type.quant]
    quant = common(quants)
    ways = {(v.name, turned) for p in joined for v in sources[p]
            for turned in _ways(v, recipes.get(p.name))}
    for name in sorted(name for name, turned in ways if turned and (name, False) in ways):
        yield f"{name} is read by rows and by columns"
    for param in joined:
        for source in sources[param]:
            if source.type.quant is None:
                yield f"it is joined to {source.name}, which keeps its dtype"
        yield from _recipe_reasons(recipes.get(param.name))
        if not any(reads.all(param)):
            yield "nothing reads it"
        for inner, node in reads.all(param):
            if node is None or not _is_read(inner, node):
                yield f"read by {_reader(node)}, which is neither a linear nor an embedding"
        n, k = param.shape
        if isinstance(n, int) and n < FEWEST_ROWS:
            yield f"it has only {n} rows"
        if not isinstance(k, int) or not quant.fits(k):
            yield f"k is {k}, no multiple of the group of {quant.group}"


def _is_read(param: Value, node: Node) -> bool:
    place = READERS.get(node.name)
    return place is not None and [i for i, v in enumerate(node.inputs) if v is param] == [place]


def _reader(node: Node | None) -> str:
    return f"{node.name} at {node.loc}" if node else "the caller, as an output"


def _recipe_reasons(recipe: Graph | None) -> Iterator[str]:
    """Why a recipe does not leave rows whole, or puts them into others than those of a weight."""
    for node in (n for n in recipe.nodes if n.inputs) if recipe else ():
        turned = node.name == "transpose" and node.inputs[0].is_param
        if not turned and not _moves_rows(node):
            yield f"{node.name} at {node.loc} computes with it"


def _ways(source: Value, recipe: Graph | None) -> set[bool]:
    """Whether a weight is transposed where it is read."""
    if recipe is None:
        return {False}
    return {n is not None and n.name == "transpose" for n in recipe.users.get(source, [])}


def _moves_rows(node: Node) -> bool:
    """Whether a node moves whole rows: nothing happens to the last axis."""
    ranks = [len(v.shape) for v in node.inputs]
    if min(ranks) < 2 or any(len(t.shape) < 2 for t in node.out_types):
        return False
    match node.name:
        case "reshape":
            return node.out_types[0].shape[-1] == node.inputs[0].shape[-1]
        case "transpose":
            return bool(node.attr["order"][-1] == ranks[0] - 1)
        case "concat" | "slice" | "split":
            return node.attr["axis"] not in (-1, ranks[0] - 1)
    return False


def _named(joined: Sequence[Value], sources: Mapping[Value, Sequence[Value]]) -> str:
    names = list(dict.fromkeys(v.name for p in joined for v in sources[p]))
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _with_formats(graph: Graph, formats: Mapping[Value, Quant | None]) -> Graph:
    """`graph`, and the bodies of its repeats, with params of these formats."""
    new = {p: replace(p, type=replace(p.type, quant=quant)) for p, quant in formats.items()
           if p.type.quant != quant}
    for node in graph.nodes:
        if node.op is REPEAT and node.body is not None:
            operands = operands_of(node, node.inputs)
            inner = {param: formats[given] for given, param
                     in zip(operands.params[0], node.body.params, strict=True) if given in formats}
            body = _with_formats(node.body, inner)
            if body is not node.body:
                moved = make_repeat(body, operands, node)
                new.update(zip(node.outputs, moved.outputs, strict=True))
    params = tuple(new.get(p, p) for p in graph.params)
    return substitute(graph, new, params=params) if new else graph


__all__ = ["FEWEST_ROWS", "Quantise", "Reads", "check_quants", "quantised"]
