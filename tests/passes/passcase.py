"""Small graphs, targets and the self-check of rules for the tests of the passes."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphdsl.backends.cpu.backend import BACKEND
from graphdsl.errors import GraphError, Loc
from graphdsl.ir import Graph, TensorType, Value
from graphdsl.passes.base import Target
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.pipeline import Lowered
from graphdsl.passes.rules import FusionRule, GroupRule
from graphdsl.passes.samples import Samples, reference_outputs, samples, without_padding
from graphdsl.passes.verify import problem_of
from graphdsl.reference import TOLERANCE, error_of
from graphdsl.signature import Term, parse_terms

CPU = BACKEND.target
WHOLE = Target("whole", takes=frozenset({"rms_norm", "add_rms_norm", "swiglu", "linear", "rope",
                                         "rope_append"}), fuses_loops=False)
PLAIN = Target("plain", fuses_loops=False)
SINGLE = Target("single", epilogue_matmuls=1)


def run_lowered(lowered: Lowered, given: Samples) -> list[Any]:
    """The outputs of a lowered graph in the reference (f64), its recipes first."""
    return reference_outputs(lowered.graph, given, lowered.recipes)


def assert_same(before: Graph, after: Graph | Lowered, seed: int = 0) -> None:
    """Both have the same outputs on random inputs, to the tolerance of f64."""
    lowered = after if isinstance(after, Lowered) else Lowered(after)
    given = samples(before, seed)
    wanted = without_padding(before, given, reference_outputs(before, given))
    found = without_padding(before, given, run_lowered(lowered, given))
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        error = error_of(a, b)
        assert error <= TOLERANCE["f64"], f"the numbers differ by {error:.2g}"


def leaf(name: str, *shape: Any, dtype: str = "f32", kind: str = "") -> Value:
    return Value(TensorType(shape, dtype), name=name, kind=kind)


def graph_of(*outputs: Value, state: tuple[Value, ...] = ()) -> Graph:
    """The graph of some values, its leaves found from them; `state` goes with its new values at
    the end of `outputs`."""
    alone = Graph("test", (), (), (), outputs)
    leaves = dict.fromkeys(v for n in alone.nodes for v in n.inputs if v.node is None)
    leaves |= dict.fromkeys(v for v in outputs if v.node is None)
    inputs = tuple(v for v in leaves if not v.is_param and v not in state)
    return Graph("test", inputs, tuple(v for v in leaves if v.is_param), state, outputs)


def names(graph: Graph) -> list[str]:
    """The ops of a graph, in order."""
    return [n.name for n in graph.nodes]


def line_of(marker: str, file: str) -> Loc:
    """The line of a test file that ends with the comment `# marker`."""
    lines = Path(file).read_text().splitlines()
    return Loc(file, 1 + next(i for i, text in enumerate(lines) if text.endswith(f"# {marker}")))


# The self-check draws operands for `before` and looks at what the rule makes of it.


def drawn_types(shapes: str, draw: random.Random) -> dict[str, TensorType]:
    """A type for every operand; *b is two sizes."""
    sizes: dict[str, tuple[int, ...]] = {}

    def size(dim: str) -> tuple[int, ...]:
        if dim.isdigit():
            return (int(dim),)
        return sizes.setdefault(dim, tuple(draw.randint(2, 5) for _ in range(1 + ("*" in dim))))

    return {t.name: TensorType(sum(map(size, t.dims), ()), _dtype(t))
            for t in parse_terms(shapes)}


def _dtype(term: Term) -> str:
    return "f32" if term.dtype == "T" else term.dtype


def broadcast_types(types: dict[str, TensorType]) -> Iterator[dict[str, TensorType]]:
    """The types with one operand at a time smaller: a size of 1, or leading axes left out."""
    for name, kind in types.items():
        for axis in range(len(kind.shape)):
            shape = (*kind.shape[:axis], 1, *kind.shape[axis + 1:])
            yield types | {name: replace(kind, shape=shape)}
            yield types | {name: replace(kind, shape=kind.shape[axis + 1:])}


Example = FusionRule | GroupRule


def before_of(rule: Example, types: dict[str, TensorType], attrs: dict[str, Any]) -> Graph:
    """The graph of the rule's `before`."""
    params = getattr(rule, "params", ())
    operands = [Value(t, name=n, kind="param" if n in params else "") for n, t in types.items()]
    made = rule.before(*operands, **attrs)
    return graph_of(*(made if isinstance(made, tuple) else (made,)))


def swapped(graph: Graph) -> Graph:
    """The graph with the operands of every commutative op the other way round."""
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = tuple(env.get(v, v) for v in node.inputs)
        new = replace(node, inputs=inputs[::-1] if node.op.commutative else inputs)
        env.update(zip(node.outputs, new.outputs, strict=True))
    return replace(graph, outputs=tuple(env.get(v, v) for v in graph.outputs))


def attribute_choices(rule: Example) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*rule.attributes.values()):
        yield dict(zip(rule.attributes, values, strict=True))


def self_check(rule: Example, seed: int) -> None:
    """The rule fires on its `before`, in both orders of operands; the numbers stay; it does not
    fire on what it has made; broadcast operands are either fused rightly or refused."""
    draw = random.Random(seed)
    for attrs in attribute_choices(rule):
        types = drawn_types(rule.shapes, draw)
        before = before_of(rule, types, attrs)
        for graph in (before, swapped(before)):
            assert check_once(rule, graph, seed), f"{rule.name} does not fire on its `before`"
        for broadcast in broadcast_types(types):
            try:
                graph = before_of(rule, broadcast, attrs)
            except GraphError:
                continue
            check_once(rule, graph, seed)


def check_once(rule: Example, graph: Graph, seed: int) -> bool:
    """Whether the rule fires; that the graph still computes the same, and the rule is done."""
    after, fired, _ = apply_rules(graph, [rule])
    assert not problem_of(after)
    assert_same(graph, after, seed)
    assert not apply_rules(after, [rule])[1], f"{rule.name} fires on its own output"
    return bool(fired)


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)
