"""A Program as text (the golden format): one line a node."""

from __future__ import annotations

from collections.abc import Iterator

from graphdsl.ir import Size

from .atb import DataType, Enum, Field, Graph, Node, Program, Tensor


def program_text(program: Program) -> str:
    """The phases, the tensors of each run, and every graph once."""
    return "\n".join(_program(program))


def _program(program: Program) -> Iterator[str]:
    yield f"program {program.name} {program.dtype}:"
    for prepared in program.prepared:
        extra = [f"of={'+'.join(prepared.of)}" if prepared.of else ""]
        extra += [f"{name}={getattr(prepared, name)}" for name in ("block", "window", "limit")
                  if getattr(prepared, name)]
        tail = " ".join(part for part in extra if part)
        yield f"  prepared {prepared.kind} {_tensor(prepared.tensor)} {tail}".rstrip()
    yield from (f"  kept {_tensor(tensor)}" for tensor in program.kept)
    for phase in program.phases:
        yield f"  phase {phase.name}:"
        yield from (f"    {run.graph.name}({', '.join(run.bound)})" for run in phase.runs)
    graphs = dict.fromkeys(g for phase in program.phases for g in phase.graphs)
    for graph in graphs:
        yield graph_text(graph)


def graph_text(graph: Graph) -> str:
    """The tensors that a graph is given and its nodes."""
    given = [f"  {kind} {_tensor(t)}" for kind, tensors in (("in", graph.inputs),
                                                            ("out", graph.outputs))
             for t in tensors]
    return "\n".join([f"graph {graph.name}: {len(graph.nodes)} nodes", *given,
                      *(f"  {node_text(node)}" for node in graph.nodes)])


def node_text(node: Node) -> str:
    """`linear = Linear(x, w; hasBias=False)  # layer.py:12 attn`; a view stands behind its
    tensor."""
    inputs = [f"{t.name}{_shape(view) if view else ''}"
              for t, view in zip(node.inputs, node.views, strict=True)]
    fields = ", ".join(f"{name}={_field(value)}" for name, value in node.fields)
    made = ", ".join(t.name for t in node.outputs)
    origin = f" {node.origin}" if node.origin else ""
    rest = f"; {fields}" if fields else ""
    return f"{made} = {node.op}({', '.join(inputs)}{rest})  # {node.loc}{origin}"


def _tensor(tensor: Tensor) -> str:
    form = f"@{tensor.format}" if tensor.format != "nd" else ""
    return f"{tensor.name} : {tensor.dtype}{_shape(tensor.shape)}{form}" + (
        " host" if tensor.host else "")


def _shape(shape: tuple[Size, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _field(value: Field) -> str:
    if isinstance(value, Enum):
        return value.name
    return value.dtype or "undefined" if isinstance(value, DataType) else str(value)


__all__ = ["graph_text", "node_text", "program_text"]
