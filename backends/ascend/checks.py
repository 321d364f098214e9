"""Graphs and programs against what ATB demands, before any C++ exists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from graphdsl.errors import GraphError, Loc

from .atb import Graph, Node, Phase, Program, Run, Tensor
from .checks_call import described
from .checks_node import check_node
from .checks_sizes import same_shape
from .tables import MOST_NAME, MOST_NODES, MOST_TENSORS, WITHOUT_BF16
from .target import check_soc


def check_program(program: Program, soc: str) -> None:
    """Raises GraphError at the user's line for what ATB refuses on `soc`, or takes and gets
    wrong."""
    if program.dtype == "bf16" and soc in WITHOUT_BF16:
        raise GraphError(f"{program.name}: bf16 on {soc}, which has none",
                         hint="--dtype f16, or --soc 910b")
    known = _named(program)
    for phase in program.phases:
        for graph in phase.graphs:
            check_graph(graph, soc)
        _check_phase(program, phase, known)


def check_graph(graph: Graph, soc: str) -> None:
    """The same for one graph."""
    check_soc(soc)
    _check_counts(graph)
    _check_names(graph)
    _check_order(graph)
    for node in graph.nodes:
        check_node(node, soc)


def _first_line(graph: Graph) -> Loc | None:
    return next((node.loc for node in graph.nodes if node.loc), None)


def _check_counts(graph: Graph) -> None:
    counts = {"inputs": graph.inputs, "outputs": graph.outputs, "internals": graph.internals}
    for kind, tensors in counts.items():
        if len(tensors) > MOST_TENSORS:
            raise GraphError(f"ATB graph {graph.name}: {len(tensors)} {kind}, wanted at most "
                             f"{MOST_TENSORS}", _first_line(graph), "cut the Layer in two")
    if not 1 <= len(graph.nodes) <= MOST_NODES:
        raise GraphError(f"ATB graph {graph.name}: {len(graph.nodes)} nodes, wanted 1 to "
                         f"{MOST_NODES}", _first_line(graph), "cut the Layer in two")


def _check_names(graph: Graph) -> None:
    if not re.fullmatch(rf"[A-Za-z0-9_]{{1,{MOST_NAME}}}", graph.name):
        raise GraphError(f"ATB graph {graph.name!r}: wanted a name of 1 to {MOST_NAME} letters, "
                         "digits and _", _first_line(graph), "rename the Layer")
    known: dict[str, Tensor] = {}
    for tensor in graph.inputs + graph.outputs:
        if tensor.name in known:
            raise GraphError(f"ATB graph {graph.name}: '{tensor.name}' is twice among its inputs "
                             "and outputs", _first_line(graph))
        known[tensor.name] = tensor
    for node in graph.nodes:
        for tensor in node.inputs + node.outputs:
            if known.setdefault(tensor.name, tensor) != tensor:
                raise GraphError(f"ATB's {node.op}: {described(tensor)}, but there is "
                                 f"{described(known[tensor.name])}", node.loc)


def _check_order(graph: Graph) -> None:
    """Every tensor is written once, before it is read; in place counts as reading."""
    writer: dict[Tensor, Node] = {}
    later = {tensor for node in graph.nodes for tensor in node.outputs}
    for node in graph.nodes:
        for tensor in node.inputs:
            if tensor not in graph.inputs and tensor not in writer:
                problem = "is read before it is written" if tensor in later else \
                    "is read, but nothing writes it"
                raise GraphError(f"ATB's {node.op}: {described(tensor)} {problem}", node.loc)
            if tensor.host and tensor not in graph.inputs:
                raise GraphError(f"ATB's {node.op}: {described(tensor)} is a host tensor that the "
                                 "graph computes, wanted an input of the graph", node.loc)
        for tensor in node.outputs:
            if tensor not in node.inputs:
                _check_first_write(graph, node, tensor, writer.get(tensor))
            writer[tensor] = node
    for tensor in graph.outputs:
        if tensor not in writer:
            raise GraphError(f"ATB graph {graph.name}: its output {described(tensor)} is never "
                             "written", _first_line(graph))


def _check_first_write(graph: Graph, node: Node, tensor: Tensor, before: Node | None) -> None:
    if before is None and tensor not in graph.inputs:
        return
    by = f"by {before.op} at {before.loc}" if before else "by the caller: it is an input"
    raise GraphError(f"ATB's {node.op}: {described(tensor)} is already written {by}", node.loc,
                     "only an operation that reads it too may write it again")


def _named(program: Program) -> Mapping[str, Tensor]:
    """The tensors of a program by name."""
    known: dict[str, Tensor] = {}
    made = [*program.ports, *(prepared.tensor for prepared in program.prepared), *program.kept]
    for tensor in made:
        if tensor.name in known:
            raise GraphError(f"{program.name}: two tensors are called '{tensor.name}'")
        known[tensor.name] = tensor
    return known


def _check_phase(program: Program, phase: Phase, known: Mapping[str, Tensor]) -> None:
    """Graphs get what they were made for, and nothing that no graph before has written."""
    unwritten = {tensor.name for tensor in program.kept} | _results(program.ports)
    for run in phase.runs:
        _check_bound(run, known)
        inputs = run.bound[:len(run.graph.inputs)]
        for name in inputs:
            if name in unwritten:
                raise GraphError(f"ATB graph {run.graph.name} in {phase.name}: '{name}' is read "
                                 "before a graph has written it", _first_line(run.graph))
        unwritten -= set(run.bound[len(inputs):])
    missing = sorted(unwritten & _results(program.ports))
    if missing:
        raise GraphError(f"{program.name} in {phase.name}: no graph writes '{missing[0]}'")


def _results(ports: Iterable[Tensor]) -> set[str]:
    return {port.name for port in ports if re.fullmatch(r"output\d+", port.name)}


def _check_bound(run: Run, known: Mapping[str, Tensor]) -> None:
    own = run.graph.inputs + run.graph.outputs
    loc = _first_line(run.graph)
    if len(run.bound) != len(own):
        raise GraphError(f"ATB graph {run.graph.name}: {len(run.bound)} tensors are bound, wanted "
                         f"{len(own)}", loc)
    for name, tensor in zip(run.bound, own, strict=True):
        given = known.get(name)
        if given is None:
            raise GraphError(f"ATB graph {run.graph.name}: '{name}' is bound to "
                             f"{described(tensor)}, but the program has no such tensor", loc)
        fits = (given.dtype, given.format) == (tensor.dtype, tensor.format)
        if not fits or not same_shape(given.shape, tensor.shape) or tensor.host > given.host:
            host = " without host values" if tensor.host > given.host else ""
            raise GraphError(f"ATB graph {run.graph.name}: {described(given)}{host} is bound to "
                             f"{described(tensor)}", loc)
