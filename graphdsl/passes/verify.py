"""What holds for every graph between two passes, and the comparison of two graphs by numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from graphdsl.errors import GraphError
from graphdsl.ir import Attrs, Graph, Node, TensorType
from graphdsl.op import Op
from graphdsl.passes.base import CheckFailed
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.passes.samples import Samples, reference_outputs, samples, without_padding
from graphdsl.printer import node_text
from graphdsl.reference import TOLERANCE, error_of

if TYPE_CHECKING:
    from torch import Tensor


def problem_of(graph: Graph) -> str:
    """What is wrong with `graph`, or an empty string: every value is made before it is read, or is
    a leaf of this graph; types are those that the ops infer; bodies fit their operands."""
    known = set(graph.leaves)
    if len(known) != len(graph.leaves):
        return f"{graph.name} has a leaf twice"
    for node in graph.nodes:
        stray = next((v for v in node.inputs if v not in known), None)
        problem = (f"{stray.name or stray.type} is neither a leaf nor made before"
                   if stray is not None else _node_problem(node))
        if problem:
            return f"{problem}\n  in {graph.name}: {node_text(node)}"
        known.update(node.outputs)
    stray = next((v for v in graph.outputs if v not in known), None)
    if stray is not None:
        return f"output {stray.name or stray.type} of {graph.name} is not made by it"
    return _state_problem(graph)


def _state_problem(graph: Graph) -> str:
    for old, new in zip(graph.state, graph.new_state, strict=True):
        if old.type != new.type:
            return f"{graph.name}: state {old.name} is {old.type}, its new value {new.type}"
    return ""


def _node_problem(node: Node) -> str:
    if node.body is not None:
        return _body_problem(node)
    try:
        wanted = _inferred_types(node.op, tuple(v.type for v in node.inputs), node.attrs)
    except GraphError as error:
        return str(error)
    return _type_problem(node, node.out_types, wanted)


@lru_cache(maxsize=4096)
def _inferred_types(op: Op, types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """What the op infers: asked again and again for the same Layer, after every pass."""
    by_name = dict(attrs)
    wanted: tuple[TensorType, ...] = ()
    if op.signature:
        wanted = op.signature.check(types, by_name.get("given"))
    return op.infer(types, by_name) if op.infer else wanted


def _type_problem(node: Node, found: tuple[TensorType, ...],
                  wanted: tuple[TensorType, ...]) -> str:
    if found != wanted:
        listed = (", ".join(map(str, types)) for types in (found, wanted))
        return f"{node.name} has the types {' where it infers '.join(listed)}"
    return ""


def _body_problem(node: Node) -> str:
    body = node.body
    assert body is not None
    if node.op is REPEAT:
        return _repeat_problem(node) or problem_of(body)
    if [v.type.plain for v in node.inputs] != [v.type.plain for v in body.leaves]:
        return f"the body of {node.name} takes other types than it is given"
    return (_type_problem(node, node.out_types, tuple(v.type for v in body.outputs))
            or ("" if node.op.is_operation else problem_of(body)))


def _repeat_problem(node: Node) -> str:
    body = node.body
    assert body is not None
    operands = operands_of(node, node.inputs)
    carried = [v.type for v in operands.carried]
    if carried != [v.type for v in body.outputs[: len(carried)]]:
        return "a turn of the repeat returns other types than it takes"
    for state, params in zip(operands.state, operands.params, strict=True):
        given = (*operands.carried, *operands.invariant, *state, *params)
        if [v.type.plain for v in given] != [v.type.plain for v in body.leaves]:
            return "the body of the repeat takes other types than it is given"
    return ""


@dataclass(frozen=True)
class Expected:
    """Random inputs of a graph, and its outputs for them in the reference, in f64."""

    source: Graph
    given: Samples
    outputs: list[Tensor]

    @staticmethod
    def of(graph: Graph) -> Expected:
        given = samples(graph, seed=0)
        outputs = reference_outputs(graph, given)
        return Expected(graph, given, without_padding(graph, given, outputs))

    def check(self, name: str, graph: Graph, recipes: Mapping[str, Graph]) -> None:
        """Raises CheckFailed, naming the pass that returned `graph`, where its outputs differ by
        more than the tolerance of f64."""
        found = without_padding(self.source, self.given,
                                reference_outputs(graph, self.given, recipes))
        worst = max(map(error_of, found, self.outputs), default=0.0)
        if not worst <= TOLERANCE["f64"]:
            raise CheckFailed(f"pass {name} changes the numbers: max relative error {worst:.2g} "
                              f"(tolerance {TOLERANCE['f64']:g})")
