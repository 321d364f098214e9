"""The CPU backend: C++ with OpenMP, for the vector instructions that this CPU has."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from graphdsl.backend import Capability, Check, Progress, quiet
from graphdsl.call_plan import Body, Call, CallPlan, Leaf, RepeatCall, make_plan
from graphdsl.compiler import Tools
from graphdsl.expr import Poly, c_name, product
from graphdsl.ir import FLOATS, POLICIES, Node, Value
from graphdsl.manifest import Json
from graphdsl.ops.collectives import collectives_of
from graphdsl.passes.base import Target
from graphdsl.passes.memory import ordered
from graphdsl.passes.pipeline import Lowered
from graphdsl.placement import report
from graphdsl.plan import Plan
from graphdsl.roofline import Limits, Machine
from graphdsl.views import Ref

from .attention_calls import attention_of, heads_together
from .c_types import CTYPES, ctype_of
from .calls import (
    KERNELS,
    Prologue,
    has_single_row_stride,
    matmul_scratch,
    note,
    rope_scratch,
    shared_rows,
    view_of,
)
from .features import Level, best_level, cpu_features
from .loops import EXPRESSIONS, REDUCTIONS, loop_scratch
from .machine import find_machine, measure_again
from .scratch import Scratch
from .sharing import Site, shared

HERE = Path(__file__).parent

FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno",
         "-fno-trapping-math", "-Wall", "-Wextra", "-Werror", "-Wno-psabi",
         "-Wno-maybe-uninitialized")
"""g++ 12 finds its own AVX-512 intrinsics uninitialised."""

TAKEN = frozenset({"rope_append", "norm_rope_append"})
"""Operations with a kernel of their own."""


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"),
                              undefined=jinja2.StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)


@dataclass(frozen=True)
class CPU:
    """Builds for `level`, or for the best that this machine has; `timed`: the library measures its
    calls."""

    level: Level | None = None
    timed: bool = False

    @property
    def target(self) -> Target:
        return Target("cpu", takes=TAKEN, kv_order="bnsd",
                      kv_policies=frozenset(POLICIES), kv_storages=frozenset({"", "int8"}),
                      fuses_attention=True, fuses_prologues=True, quants=True)

    @property
    def socs(self) -> tuple[str, ...]:
        return ()

    def for_soc(self, soc: str) -> CPU:
        del soc
        return self

    @property
    def chosen(self) -> Level:
        return self.level or best_level(cpu_features())

    @property
    def features(self) -> tuple[str, ...]:
        """What a CPU has to list to run what is built."""
        return self.chosen.features

    def missing(self, features: Sequence[str]) -> list[str]:
        """Those of `features` that this CPU does not list."""
        return sorted(set(features) - cpu_features())

    def probe(self, environment: Mapping[str, str]) -> Capability:
        tools = Tools(environment)
        found = shutil.which(tools.compiler[0], path=environment.get("PATH"))
        version = tools.version() if found else f"{shlex.join(tools.compiler)} is not there"
        level = best_level(cpu_features())
        return Capability((Check("C++ compiler", found is not None, version),
                           Check("CPU", True, f"{level.name} path")), level.features)

    def supports(self, node: Node) -> str:
        if node.body is not None and node.name not in TAKEN:
            return next((why for n in node.body.nodes if (why := self.supports(n))), "")
        dtypes = [v.dtype for v in (*node.inputs, *node.outputs)]
        unknown = [d for d in dtypes if d not in CTYPES]
        if unknown:
            return f"the cpu backend has no {unknown[0]}"
        storages = [v.type.layout.storage for v in (*node.inputs, *node.outputs) if v.type.layout]
        foreign = [s for s in storages if s not in self.target.kv_storages]
        if foreign:
            return f"the cpu backend has no {foreign[0]} storage"
        known = {"pointwise": (*EXPRESSIONS, "cast", "constant"), "reduce": (*REDUCTIONS,),
                 "call": (*KERNELS, "concat"), "view": (node.name,)}
        if node.name not in known[node.op.kind]:
            return f"the cpu backend has no code for {node.name}"
        floats_only = ("div", "exp", "log", "sqrt", "rsqrt", "tanh", "erf", "sin", "cos", "pow",
                       "floor", *REDUCTIONS)
        if node.name in floats_only and node.inputs[0].dtype not in FLOATS:
            return f"{node.name} of {node.inputs[0].dtype} is not supported: cast to f32 first"
        return ""

    def packed_inputs(self, node: Node) -> tuple[int, ...]:
        if node.name in ("matmul_epilogue", "matmul_prologue"):
            assert node.body is not None
            place = {v: i for i, v in enumerate(node.body.leaves)}
            return tuple(place[n.inputs[i]] for n in node.body.nodes
                         for i in self.packed_inputs(n))
        return {"matmul_nt": (1,), "embedding": (1,), "expert_linear": (1,)}.get(node.name, ())

    def needs_copy(self, node: Node, index: int, ref: Ref) -> bool:
        if node.name in ("loop", "copy"):
            return not ref.unit_columns
        if node.name == "matmul" or (node.name == "matmul_nt" and not node.inputs[1].is_param):
            return False
        if node.name == "matmul_prologue":
            assert node.body is not None
            leaf = node.body.leaves[index]
            return any(self.needs_copy(n, i, ref) for n in node.body.nodes
                       for i, v in enumerate(n.inputs) if v is leaf)
        if node.name == "attention_epilogue":
            attention, leaves = attention_of(node)
            if leaves[index] not in attention.inputs:
                return not ref.unit_columns
            return self.needs_copy(attention, attention.inputs.index(leaves[index]), ref)
        if node.name in ("attention", "kv_append", "relayout", *TAKEN):
            return _strides_matter(node.inputs[index], ref)
        if node.name == "expert_linear":
            row = shared_rows(ref)[0]
            return not (row.unit_columns and has_single_row_stride(row) if index == 0
                        else ref.is_dense)
        if node.name in ("matmul_nt", "matmul_epilogue"):
            return not (ref.unit_columns and has_single_row_stride(ref))
        return not ref.is_dense

    def can_write(self, node: Node, ref: Ref) -> bool:
        if node.name in ("matmul_nt", "matmul_prologue", "embedding", "expert_linear"):
            return ref.unit_columns and has_single_row_stride(ref)
        if node.name in ("loop", "matmul", "matmul_epilogue", "attention", "relayout", *TAKEN):
            return ref.unit_columns
        return ref.is_dense

    def size(self, text: str, dims: Mapping[str, int], threads: int = 1) -> int:
        """The number that C text of a size stands for."""
        return Scratch(self.chosen.lanes, threads).bytes(text, dims)

    def scratch(self, node: Node, inputs: Sequence[Ref], outputs: Sequence[Ref]) -> str:
        if node.name == "loop":
            return loop_scratch(node, "threads")
        if node.name == "matmul_prologue":
            return " + ".join(Prologue.of(node).scratch("threads"))
        if node.name == "attention_epilogue":
            attention, leaves = attention_of(node)
            own = [inputs[leaves.index(v)] for v in attention.inputs]
            return self.scratch(attention, own, outputs)
        if node.name == "attention":
            q, k, v = (ref.shape for ref in inputs[:3])
            sizes = (*q[1:3], k[2], q[3], v[3], heads_together(node.inputs[1]))
            return f"attention_scratch({', '.join(str(Poly.of(size)) for size in sizes)}, threads)"
        if node.name == "matmul_epilogue" or (node.name == "matmul_nt"
                                              and node.inputs[1].is_param):
            return matmul_scratch(node, "threads")
        if node.name in TAKEN:
            return rope_scratch(node)
        if node.name == "expert_linear" and node.inputs[1].is_param:
            x, w = inputs[:2]
            return (f"expert_scratch({product(x.shape[:-1])}, {w.shape[0]}, {Poly.of(x.shape[-1])},"
                    " threads)")
        return ""

    def plan(self, lowered: Lowered) -> CallPlan:
        return make_plan(lowered.graph, lowered.recipes, self, ordered)

    def summary(self, plan: Plan) -> list[tuple[str, str]]:
        """The number of calls, and the workspace."""
        assert isinstance(plan, CallPlan)
        calls = sum(len(body.calls) for body in plan.bodies)
        return [("render", f"{calls} calls, {len(plan.buffers)} buffers"),
                ("memory", report(plan, self.size))]

    def facts(self, environment: Mapping[str, str]) -> Json:
        """Nothing: the features say all."""
        del environment
        return {}

    def render(self, plan: Plan, manifest: str) -> dict[str, str]:
        """The sources of a library: one generated file, and the headers that it includes."""
        assert isinstance(plan, CallPlan)
        name = plan.graph.name
        functions, calls = shared([_sites(body) for body in plan.bodies])
        bodies = [_body_view(*each) for each in zip(plan.bodies, calls, strict=True)]
        steps = {d.name: i for i, p in enumerate(plan.ports) for d in plan.step_dims
                 if d.source == p.name}
        text = _templates().get_template("library.cpp.j2").render(
            name=name, dims=[c_name(d.name) for d in (*plan.dims, *plan.step_dims)],
            plan_dims=[c_name(d.name) for d in plan.dims],
            step_dims=[{"name": c_name(d.name), "hi": d.hi, "index": steps[d.name]}
                       for d in plan.step_dims],
            buffers=plan.buffers, bodies=bodies, functions=functions,
            weights=[_weight_view(p.value, p.packed) for p in plan.ports if p.kind == "param"],
            manifest=[json.dumps(line) for line in manifest.splitlines(keepends=True)],
            pointers=len(plan.ports), timed=self.timed,
            quantised=any(p.value.type.quant for p in plan.ports),
            exchanges=bool(collectives_of(plan.graph)))
        headers = {f"src/kernels/{p.name}": p.read_text()
                   for p in sorted((HERE / "kernels").glob("*.hpp"))}
        return {f"src/{name}.cpp": text, "src/kernels/abi.h": abi_text(), **headers}

    def node_texts(self, plan: Plan) -> list[tuple[Node, str]]:
        """The generated text of every call. A copy belongs to the node whose result is copied."""
        assert isinstance(plan, CallPlan)
        _, texts = shared([_sites(body) for body in plan.bodies])
        pairs = [pair for body, sites in zip(plan.bodies, texts, strict=True)
                 for pair in zip(body.calls, sites, strict=True)]
        owners = [(call.node.inputs[0].node if call.node.name == "copy" else call.node, site)
                  for call, site in pairs]
        return [(node, _with_callee(site)) for node, site in owners if node is not None]

    def command(self, sources: Path, library: Path, environment: Mapping[str, str]) -> list[str]:
        """The compiler's command line."""
        units = sorted(str(p) for p in sources.glob("*.cpp"))
        return [*Tools(environment).compiler, *FLAGS, *self.chosen.flags,
                f"-I{sources / 'kernels'}", *units, "-o", str(library)]

    def fingerprint(self, environment: Mapping[str, str]) -> str:
        """What the library depends on besides its sources."""
        return "\n".join([Tools(environment).version(), *FLAGS, *self.chosen.flags])

    def compile(self, build: Path, library: Path, environment: Mapping[str, str], cache: Path,
                progress: Progress = quiet) -> None:
        del cache, progress
        Tools(environment).run(self.command(build / "src", library, environment))

    def with_times(self) -> CPU:
        """The same backend, whose libraries measure their calls."""
        return replace(self, timed=True)

    def machine(self, threads: int, environment: Mapping[str, str], cache: Path, *,
                fresh: bool) -> Machine:
        """This machine, measured by loops of our own."""
        return find_machine(self, threads, environment, cache, fresh=fresh)

    def limits_now(self, threads: int, environment: Mapping[str, str], cache: Path) -> Limits:
        """What those loops reach at this moment."""
        return measure_again(self, threads, environment, cache)


def abi_text() -> str:
    import graphdsl.runtime

    return (Path(graphdsl.runtime.__file__).parent / "abi.h").read_text()


def _strides_matter(value: Value, ref: Ref) -> bool:
    """Heads may lie anywhere; positions and angles have one stride a sequence."""
    if value.dtype == "bool":
        return False
    return not (ref.unit_columns if len(value.shape) == 4 else ref.is_dense)


def call_text(call: Call | RepeatCall) -> str:
    """The generated code of one call."""
    view = view_of(call)
    return _templates().get_template(view["template"]).render(call=view)


def _sites(body: Body) -> list[Site]:
    """The calls of a body with their generated code."""
    ctypes = {leaf.base: ctype_of(leaf.value.type) for leaf in body.leaves}
    ctypes |= {f"b{b['number']}": b["ctype"] for b in _buffers(body)}
    return [Site(note(call), isinstance(call, Call) and call.barrier,
                 call.op if isinstance(call, Call) else "repeat", call_text(call), ctypes)
            for call in body.calls]


def _with_callee(site: Site) -> str:
    if site.callee is None:
        return site.text
    return f"{site.text}\n// {site.callee.name}, which equal calls share:\n{site.callee.text}"


def _body_view(body: Body, calls: Sequence[Site]) -> dict[str, Any]:
    return {"name": body.name, "leaves": [_leaf_view(leaf) for leaf in body.leaves],
            "buffers": _buffers(body), "calls": calls}


def _buffers(body: Body) -> list[dict[str, Any]]:
    scratch = {c.scratch.buffer for c in body.calls if isinstance(c, Call) and c.scratch}
    return [{"number": n, "ctype": "char" if n in scratch else CTYPES[dtype]}
            for n, dtype in sorted(body.buffers.items())]


def _leaf_view(leaf: Leaf) -> dict[str, Any]:
    packed = " packed" if leaf.packed else ""
    label = leaf.value.name or "result"
    return {"base": leaf.base, "index": leaf.index, "ctype": ctype_of(leaf.value.type),
            "note": f"{label}: {leaf.value.type}{packed}"}


def _weight_view(value: Value, packed: bool) -> dict[str, str]:
    if not packed:
        return {"bytes": "0", "pack": "nullptr", "name": value.name}
    kind = ctype_of(value.type)
    *experts, n, k = value.shape
    if value.type.quant:
        body = ("const auto* w = static_cast<const gdsl_quantised*>(s); pack_quant(w->values, "
                f"w->scales, w->offsets, static_cast<{kind}*>(t), {n}, {k});")
        return {"bytes": f"quant_bytes<{kind}>({n}, {k})",
                "pack": f"[](const void* s, void* t) {{ {body} }}", "name": value.name}
    count = experts[0] if experts else 1
    source = f"static_cast<const {kind}*>(s) + e * {n} * {k}"
    target = f"static_cast<char*>(t) + e * packed_bytes<{kind}>({n}, {k})"
    body = (f"for (i64 e = 0; e < {count}; ++e) "
            f"pack({source}, reinterpret_cast<{kind}*>({target}), {n}, {k});")
    return {"bytes": f"{count} * packed_bytes<{kind}>({n}, {k})",
            "pack": f"[](const void* s, void* t) {{ {body} }}", "name": value.name}


BACKEND = CPU()
