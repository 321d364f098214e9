"""The C++ of a Program: a file for every graph, one with the tables of the library, and the
handwritten files that do the rest.

The same sources compile against CANN and against the emulation. They leave two symbols to whoever
compiles them: `gdsl_manifest_text` and `gdsl_runtime_log`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import jinja2

from graphdsl.expr import Poly, c_name
from graphdsl.ir import Dim, Size, constant, terms
from graphdsl.plan import Port

from .atb import (
    ROWS,
    SEQUENCES,
    DataType,
    Enum,
    Field,
    Graph,
    Node,
    Phase,
    Prepared,
    Program,
    Tensor,
)

HERE = Path(__file__).parent
DTYPES = {"f16": "ACL_FLOAT16", "bf16": "ACL_BF16", "f32": "ACL_FLOAT", "i32": "ACL_INT32",
          "bool": "ACL_BOOL"}
FORMATS = {"nd": "ACL_FORMAT_ND", "nz": "ACL_FORMAT_FRACTAL_NZ"}
PREFIXES = {"input": "IN", "state": "STATE", "param": "PARAM", "output": "OUT"}
WITH_POSITIONS = ("slots", "offsets", "contexts", "mask")
UNDEFINED = "ACL_DT_UNDEFINED"
COLUMNS = 100

EXPLICIT: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Linear": (("transposeA", "false"), ("transposeB", "true"), ("hasBias", "false"),
               ("outDataType", UNDEFINED), ("enAccum", "false")),
    "LinearParallel": (("hasResidual", "false"),),
    "Rope": (("cosFormat", "0"),),
    "SelfAttention": (("isTriuMask", "0"), ("windowSize", "0"), ("outDataType", UNDEFINED)),
    "PagedAttention": (("outDataType", UNDEFINED),),
}
"""Fields that are written even where the graph leaves them at what they are meant to be: ATB's own
defaults differ (hasBias), or they decide what the others mean."""


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"),
                              undefined=jinja2.StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)


def render(program: Program, ports: Sequence[Port], dims: Sequence[Dim]) -> dict[str, str]:
    """The sources by path below the build's folder. `ports` are the plan's, in the order of the
    pointer table, and `dims` those of the manifest, in its order."""
    graphs = tuple(dict.fromkeys(g for phase in program.phases for g in phase.graphs))
    files = {f"src/{g.name}.cpp": render_graph(g) for g in graphs}
    assert len(files) == len(graphs), list(files)
    name = program.name if f"src/{program.name}.cpp" not in files else f"{program.name}_library"
    files[f"src/{name}.cpp"] = _library(program, graphs, ports, dims)
    return files | runner_files()


def runner_files() -> dict[str, str]:
    """What every library has: the headers, and the one source that is not generated."""
    import graphdsl.runtime

    abi = Path(graphdsl.runtime.__file__).parent / "abi.h"
    found = {f"src/runner/{p.name}": p.read_text() for p in sorted((HERE / "runner").glob("*.?pp"))}
    return {"src/runner/abi.h": abi.read_text(), **found}


def render_graph(graph: Graph) -> str:
    """The file that makes one graph."""
    named = _named(graph)
    return _templates().get_template("graph.cpp.j2").render(
        name=graph.name, inputs=len(graph.inputs), outputs=len(graph.outputs),
        tensors=[{"id": named[t], "note": _string(describe(t))} for t in graph.tensors],
        nodes=[_node_view(node, named) for node in graph.nodes])


def node_texts(graph: Graph) -> list[str]:
    """What stands in the file of a graph for each of its nodes."""
    named = _named(graph)
    template = _templates().get_template("node.cpp.j2")
    return [template.render(node=_node_view(node, named)) for node in graph.nodes]


def _named(graph: Graph) -> dict[Tensor, str]:
    """The enumerators of a graph's tensors."""
    kinds = {t: kind for kind, made in (("IN", graph.inputs), ("OUT", graph.outputs),
                                        ("MID", graph.internals)) for t in made}
    ids = _identifiers((kinds[t], t.name) for t in graph.tensors)
    return dict(zip(graph.tensors, ids, strict=True))


def describe(tensor: Tensor) -> str:
    """`x: f16[rows, 64]`, as messages say it."""
    shape = ", ".join(map(str, tensor.shape))
    return f"{tensor.name}: {tensor.dtype}[{shape}]{' nz' if tensor.format == 'nz' else ''}"


def line_of(node: Node) -> str:
    """The user's line and what became of it: `llama.py:70 layers.* <- MergeLinears`."""
    return _plain(" ".join(part for part in (str(node.loc or ""), node.origin) if part))


def _node_view(node: Node, named: Mapping[Tensor, str]) -> dict[str, Any]:
    fields = dict(EXPLICIT.get(node.op, ()))
    fields |= {path: _field_text(node.op, value) for path, value in node.fields}
    seen = zip(node.inputs, node.views, strict=True)
    return {"op": node.op, "line": line_of(node),
            "fields": [{"path": p, "value": v} for p, v in fields.items()],
            "inputs": _braced([_input_text(named[t], view) for t, view in seen], 14),
            "outputs": _braced([named[t] for t in node.outputs], 14)}


def _braced(items: Sequence[str], indent: int) -> str:
    """A list in braces that starts at column `indent`, in lines of at most 100."""
    lines = [""]
    for i, item in enumerate(items):
        text = item + ("," if i < len(items) - 1 else "")
        if lines[-1] and indent + len(lines[-1]) + len(text) + 5 > COLUMNS:
            lines.append("")
        lines[-1] += f" {text}" if lines[-1] else text
    return "{" + ("\n" + " " * (indent + 1)).join(lines) + "}"


def _input_text(name: str, view: tuple[Size, ...] | None) -> str:
    if view is None:
        return name
    assert sum(not isinstance(size, int) for size in view) <= 1, view
    sizes = [str(size) if isinstance(size, int) else "REST" for size in view]
    return f"View({name}, {{{', '.join(sizes)}}})"


def _field_text(op: str, value: Field) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return f"{value!r}f"
        case Enum():
            return f"atb::infer::{value.name}" if value.free else (
                f"atb::infer::{op}Param::{value.name}")
        case DataType():
            return DTYPES.get(value.dtype, UNDEFINED)
        case tuple():
            return f"{{{', '.join(map(str, value))}}}"


def _library(program: Program, graphs: Sequence[Graph], ports: Sequence[Port],
             dims: Sequence[Dim]) -> str:
    table = _Table.of(program, ports)
    ran = dict(zip(graphs, _identifiers(("RUN", g.name) for g in graphs), strict=True))
    sizes = dict(program.sizes)
    params = [i for i, port in enumerate(ports) if port.kind == "param"]
    return _templates().get_template("library.cpp.j2").render(
        name=program.name, dims=[c_name(d.name) for d in dims],
        sizes=[{"name": d.name, "value": str(poly)} for d, poly in sizes.items()],
        sequences=_size_text(SEQUENCES, sizes) if SEQUENCES in sizes else "1",
        rows=_size_text(ROWS, sizes) if ROWS in sizes else "1",
        tensors=[_tensor_view(t, name, sizes) | {"id": table.ids[name]}
                 for name, t in table.tensors.items()],
        ports=len(ports), first_param=params[0] if params else 0, params=len(params),
        positions=[table.ids[name] for name in _positions(program)],
        prepared=[_prepared_view(each, table.ids) for each in program.prepared],
        first_kept=len(ports) + len(program.prepared), places=places(program),
        graphs=[_graph_view(g) | {"id": ran[g]} for g in graphs],
        phases=[_phase_view(phase, program.prepared, table.ids, ran) for phase in program.phases])


@dataclass(frozen=True)
class _Table:
    """All tensors of a program in their order, and their names in C++."""

    tensors: Mapping[str, Tensor]
    ids: Mapping[str, str]

    @staticmethod
    def of(program: Program, ports: Sequence[Port]) -> _Table:
        known = {t.name: t for t in program.ports}
        names = port_names(ports)
        kinds = [PREFIXES[p.kind] for p in ports]
        tensors = {name: known[name] for name in names}
        for prefix, more in (("HOST", [p.tensor for p in program.prepared]),
                             ("KEPT", program.kept)):
            kinds += [prefix] * len(more)
            assert not tensors.keys() & {t.name for t in more}
            tensors |= {t.name: t for t in more}
        ids = _identifiers(zip(kinds, tensors, strict=True))
        return _Table(tensors, dict(zip(tensors, ids, strict=True)))


def port_names(ports: Sequence[Port]) -> list[str]:
    """Their names in the manifest: results are counted."""
    outputs = count()
    return [f"output{next(outputs)}" if p.kind == "output" else p.name for p in ports]


def _positions(program: Program) -> list[str]:
    """The inputs that say where tokens stand, and so which phase a step runs."""
    return list(dict.fromkeys(p.of[0] for p in program.prepared if p.kind in WITH_POSITIONS))


def _tensor_view(tensor: Tensor, name: str, sizes: Mapping[Dim, Poly]) -> dict[str, str]:
    return {"label": _string(name), "dtype": DTYPES[tensor.dtype],
            "format": FORMATS[tensor.format],
            "shape": f"{{{', '.join(_size_text(size, sizes) for size in tensor.shape)}}}"}


def _size_text(size: Size, sizes: Mapping[Dim, Poly]) -> str:
    """C text: the program's own dims by name, those of the manifest by theirs."""
    parts = [f"{k} * {name}" if k != 1 else name for d, k in terms(size).items()
             for name in (d.name if d in sizes else c_name(d.name),)]
    if constant(size) or not parts:
        parts.append(str(constant(size)))
    return " + ".join(parts)


def _prepared_view(prepared: Prepared, ids: Mapping[str, str]) -> dict[str, Any]:
    return {"kind": prepared.kind, "id": ids[prepared.tensor.name],
            "of": [ids[name] for name in prepared.of], "block": prepared.block,
            "window": prepared.window, "limit": prepared.limit}


def _graph_view(graph: Graph) -> dict[str, Any]:
    return {"name": graph.name, "inputs": len(graph.inputs),
            "host": [i for i, tensor in enumerate(graph.inputs) if tensor.host]}


def _phase_view(phase: Phase, prepared: Sequence[Prepared],
                ids: Mapping[str, str], ran: Mapping[Graph, str]) -> dict[str, Any]:
    read = {name for run in phase.runs for name in run.bound}
    runs = []
    for run in phase.runs:
        count = len(run.graph.inputs)
        assert len(run.bound) == count + len(run.graph.outputs), run.graph.name
        assert not set(run.bound[:count]) & set(run.bound[count:]), run.bound
        bound = _braced([ids[name] for name in run.bound], 15)
        runs.append({"graph": ran[run.graph], "bound": bound})
    return {"name": phase.name, "runs": runs,
            "prepared": [i for i, p in enumerate(prepared) if p.tensor.name in read]}


def places(program: Program) -> list[int]:
    """The place in memory of every kept tensor. Two of the same size share one if in no phase both
    are alive: from the first run that has them to the last."""
    lives = [[_life(tensor, phase) for phase in program.phases] for tensor in program.kept]
    found: list[int] = []
    for index, tensor in enumerate(program.kept):
        taken = {found[i] for i in range(index) if program.kept[i].shape != tensor.shape
                 or program.kept[i].dtype != tensor.dtype
                 or any(set(a) & set(b) for a, b in zip(lives[i], lives[index], strict=True))}
        found.append(next(place for place in range(index + 1) if place not in taken))
    return found


def _life(tensor: Tensor, phase: Phase) -> range:
    used = [i for i, run in enumerate(phase.runs) if tensor.name in run.bound]
    return range(used[0], used[-1] + 1) if used else range(0)


def _identifiers(named: Iterable[tuple[str, str]]) -> list[str]:
    """Names for C++ in the style of ATB: IN_ATTN_NORM. Equal ones are counted."""
    made: list[str] = []
    for prefix, name in named:
        text = re.sub(r"[^A-Za-z0-9]+", "_", f"{prefix}_{name}").strip("_").upper()
        counted = (text if i == 1 else f"{text}_{i}" for i in count(1))
        made.append(next(each for each in counted if each not in made))
    return made


def _plain(text: str) -> str:
    """Text that ends neither a comment nor a string early."""
    return re.sub(r'[^\x20-\x7e]|["\\?]', "_", text)


def _string(text: str) -> str:
    return json.dumps(_plain(text))


__all__ = ["describe", "line_of", "places", "port_names", "render", "render_graph",
           "runner_files"]
