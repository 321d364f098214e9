"""Planned calls as what the templates print: one function per kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphdsl.call_plan import Call, RepeatCall
from graphdsl.expr import ZERO, Poly, dense_strides, product
from graphdsl.ir import DTYPES, Affine, Dim, Node, Size, TensorType
from graphdsl.views import Ref, collapsed_rows

from .attention_calls import attention_call, attention_epilogue_call
from .c_types import CTYPES, ctype_of
from .caches import cache_text
from .loops import (
    BLOCK,
    CHUNK,
    EpilogueCode,
    address,
    epilogue_code,
    loop_code,
    loop_scratch,
)

View = dict[str, Any]


def note(call: Call | RepeatCall) -> str:
    """`llama_layer.py:28 attn.qkv rms_norm <- MergeLinears`."""
    node = call.node
    origin = f" <- {'+'.join(node.origin)}" if node.origin else ""
    parts = [str(node.loc or ""), node.scope, node.name + origin]
    return " ".join(p for p in parts if p)


def view_of(call: Call | RepeatCall) -> View:
    """What the library template needs for one call."""
    if isinstance(call, RepeatCall):
        return repeat_view(call)
    common: View = {"scratch": address(call.scratch) if call.scratch else "nullptr"}
    if call.op == "loop":
        return common | loop_view(call)
    if call.op == "matmul_prologue":
        return common | prologue_view(call)
    if call.op in ("matmul_nt", "matmul_epilogue") and is_packed_matmul(call):
        return common | matmul_view(call)
    lines = KERNELS[call.op](call, common["scratch"])
    return common | {"template": "kernel.cpp.j2", "lines": lines}


def loop_view(call: Call, team: str = "team") -> View:
    """A loop whose rows are shared by the threads of the C++ variable `team`."""
    return {"template": "loop.cpp.j2", "block": BLOCK, "chunk": CHUNK, "team": team,
            "code": loop_code(call.node, call.inputs, call.outputs)}


def is_packed_matmul(call: Call) -> bool:
    return call.op == "matmul_epilogue" or call.node.inputs[1].is_param


def rows_of(ref: Ref) -> tuple[str, str]:
    """How many rows a [.., columns] operand has, and the stride from one to the next."""
    sizes, strides = collapsed_rows(ref.shape[:-1], [ref.strides[:-1]])
    assert len(sizes) <= 1, "the planner copies what has no single row stride"
    return (str(sizes[0]), str(strides[0][0])) if sizes else ("1", "0")


def has_single_row_stride(ref: Ref) -> bool:
    return len(collapsed_rows(ref.shape[:-1], [ref.strides[:-1]])[0]) <= 1


def shared_rows(ref: Ref) -> tuple[Ref, Size]:
    """A [.., columns] operand without its last row dim where that repeats one row, and how many
    rows are that one."""
    if len(ref.shape) < 2 or ref.strides[-2] != ZERO or ref.shape[-2] == 1:
        return ref, 1
    shape, strides = (*ref.shape[:-2], ref.shape[-1]), (*ref.strides[:-2], ref.strides[-1])
    return replace(ref, shape=shape, strides=strides), ref.shape[-2]


def matmul_view(call: Call) -> View:
    if call.node.body is not None:
        code = epilogue_code(call.node, call.inputs, call.outputs)
    else:
        code = plain_epilogue(call)
    x = call.inputs[code.x]
    weights = [call.node.inputs[i] for i in code.weights]
    m, stride = rows_of(x)
    return {"template": "matmul.cpp.j2", "code": code,
            "ctype": ctype_of(weights[0].type), "x": address(x), "x_stride": stride, "m": m,
            "n": weights[0].shape[0], "k": weights[0].shape[1],
            "weights": [address(call.inputs[i]) for i in code.weights]}


def plain_epilogue(call: Call) -> EpilogueCode:
    """A matmul alone stores what it accumulated."""
    _, stride = rows_of(call.outputs[0])
    out = call.outputs[0]
    pointer = f"{CTYPES[out.dtype]}* const y0 = {address(out)} + i0 * {stride};"
    return EpilogueCode(0, (1,), ("rows",), (pointer,), ("store(y0 + i, acc0, lanes);",))


def matmul_scratch(node: Node, threads: str) -> str:
    """C text of the scratch bytes of a matmul_nt by a param, or of a matmul_epilogue."""
    inner = node.body.nodes if node.body is not None else (node,)
    matmuls = [n for n in inner if n.name == "matmul_nt"]
    x, w = matmuls[0].inputs
    n, k = w.shape
    name = "quant_scratch" if w.type.quant else "matmul_scratch"
    return f"{name}({product(x.shape[:-1])}, {n}, {k}, {len(matmuls)}, {threads})"


@dataclass(frozen=True)
class Prologue:
    """The two parts of a matmul_prologue node, and how its scratch is divided: the rows that the
    loop makes (a single one for every thread, several once), what the loop keeps, and what the
    matmul needs. Bytes are C text; the first two parts are multiples of 64."""

    loop: Node
    matmul: Node

    @staticmethod
    def of(node: Node) -> Prologue:
        assert node.body is not None
        loop, matmul = node.body.nodes
        return Prologue(loop, matmul)

    @property
    def made(self) -> Ref:
        """The rows, where the generated code has them."""
        out = self.loop.outputs[0]
        return Ref("made", out.dtype, out.shape, dense_strides(out.shape))

    @property
    def rows(self) -> Poly:
        return product(self.made.shape[:-1])

    @property
    def own_bytes(self) -> str:
        """A thread's own row, and a few lines more: at a distance of 4096 bytes from the copy that
        a matmul makes of it, reads would wait for writes."""
        row = Poly.of(self.made.shape[-1]) * DTYPES[self.made.dtype]
        return f"(round_up({row}, 64) + 320)"

    def scratch(self, threads: str) -> tuple[str, str, str]:
        """The bytes of the three parts for a number of threads, C text as well."""
        shared = product(self.made.shape) * DTYPES[self.made.dtype]
        kept = loop_scratch(self.loop, threads)
        return (f"most({threads} * {self.own_bytes}, round_up({shared}, 64))",
                f"round_up({kept}, 64)" if kept else "0", matmul_scratch(self.matmul, threads))


def prologue_view(call: Call) -> View:
    assert call.node.body is not None
    assert call.scratch is not None
    parts = Prologue.of(call.node)
    ref = dict(zip(call.node.body.leaves, call.inputs, strict=True))
    ref[parts.loop.outputs[0]] = parts.made
    start = address(call.scratch)
    first, second, _ = parts.scratch("team.count")

    def inner(node: Node, outputs: tuple[Ref, ...]) -> Call:
        return Call(node.name, node, tuple(ref[v] for v in node.inputs), outputs, None, False)

    loop = loop_view(inner(parts.loop, (parts.made,)), "makers")
    matmul = matmul_view(inner(parts.matmul, call.outputs))
    return {"template": "prologue.cpp.j2", "rows": parts.rows,
            "own_bytes": parts.own_bytes, "ctype": CTYPES[parts.made.dtype],
            "prologue": loop | {"scratch": f"({start} + {first})"},
            "matmul": matmul | {"scratch": f"{start} + {first} + {second}"}}


def repeat_view(call: RepeatCall) -> View:
    body = call.node.body
    assert body is not None
    carried = [{"initial": address(i), "final": address(f), "odd": odd, "even": even}
               for i, f, (odd, even) in zip(call.initial, call.final, call.hold, strict=True)]
    inputs, states, params = len(body.inputs), len(body.state), len(body.params)
    fixed = ["nullptr"] * len(carried) + [address(r) for r in call.invariant]
    return {"template": "repeat.cpp.j2", "turns": call.turns, "body": call.body,
            "carried": carried, "fixed": fixed, "state": call.state, "params": call.params,
            "states": states, "params_a_turn": params, "first_state": inputs,
            "first_result": inputs + states + params,
            "table": inputs + states + params + len(carried)}


def _text(item: object) -> str:
    """C text of a size, a stride, or what is text already."""
    return str(Poly.of(item) if isinstance(item, Dim | Affine) else item)


def _array(items: Iterable[object]) -> str:
    return "{" + ", ".join(map(_text, items)) + "}"


def _count(shape: Sequence[Size]) -> str:
    return str(product(shape))


def _copy(call: Call, scratch: str) -> list[str]:
    source, target = call.inputs[0], call.outputs[0]
    sizes, (a, b) = collapsed_rows(source.shape, [source.strides, target.strides])
    members = [address(source), address(target), str(len(sizes)), *map(_array, (sizes, a, b))]
    return [f"copy_strided(team, StridedCopy<{CTYPES[source.dtype]}>{_array(members)});"]


def _embedding(call: Call, scratch: str) -> list[str]:
    ids, table, out = *call.inputs, call.outputs[0]
    packed = call.node.inputs[1].is_param
    name = "embedding" if packed else "embedding_plain"
    _, stride = rows_of(out)
    return [f"{name}(team, {address(ids)}, {_count(ids.shape)}, {address(table)}, "
            f"{_text(table.shape[0])}, {_text(table.shape[1])}, {address(out)}, {stride});"]


def _batched(call: Call, scratch: str) -> list[str]:
    """a[*b, m, k] @ b[*b, k, n], or an activation in place of a weight ([n, k])."""
    a, b, out = call.inputs[0], call.inputs[1], call.outputs[0]
    lead = a.shape[:-2]
    b_strides = (*[ZERO] * len(lead), b.strides[1], b.strides[0])
    if call.op == "matmul":
        b_strides = b.strides
    elif len(a.shape) == 1:
        a = Ref(a.base, a.dtype, (1, *a.shape), (ZERO, *a.strides), a.offset, a.buffer)
        out = Ref(out.base, out.dtype, (1, *out.shape), (ZERO, *out.strides), out.offset,
                  out.buffer)
    pad = 3 - len(lead)
    batch = _array([*[1] * pad, *lead])
    strides = [_array([*[ZERO] * pad, *group]) for group in (a.strides, b_strides, out.strides)]
    members = [address(a), address(b), address(out), batch, a.shape[-2], out.shape[-1],
               a.shape[-1], *strides]
    return [f"matmul_batched(team, BatchedMatmul<{CTYPES[a.dtype]}>{_array(members)});"]


def _expert_linear(call: Call, scratch: str) -> list[str]:
    x, w, ids, out = *call.inputs, call.outputs[0]
    each, shared = shared_rows(x)
    _, stride = rows_of(each)
    _, out_stride = rows_of(out)
    members = [address(x), stride, shared, address(w), address(ids), product(x.shape[:-1]),
               *w.shape]
    packed = call.node.inputs[1].is_param
    name, room = ("expert_linear", f"{scratch}, ") if packed else ("expert_linear_plain", "")
    return [f"{name}(team, ExpertLinear<{CTYPES[x.dtype]}>{_array(members)}, {room}"
            "[&](i64 row, i64 i, auto lanes, F sum) {",
            f"  store({address(out)} + row * {out_stride} + i, sum, lanes);", "});"]


def _view4(ref: Ref, *, const: bool = True) -> str:
    kind = ("const " if const else "") + CTYPES[ref.dtype]
    return f"View4<{kind}>{{{address(ref)}, {_array(ref.strides[:3])}}}"


def _given(call: Call) -> dict[str, tuple[TensorType, Ref]]:
    """The type of every operand that a call has, and where it lies."""
    names = call.node.op.present(len(call.inputs), call.node.attr)
    types = [value.type for value in call.node.inputs]
    return dict(zip(names, zip(types, call.inputs, strict=True), strict=True))


def _cache(given: Mapping[str, tuple[TensorType, Ref]], name: str, *, const: bool = False) -> str:
    """The cache that is operand `name` of a call; a paged one is found through the call's table."""
    table = given["table"][1] if "table" in given else None
    return cache_text(*given[name], table, const=const)


def _positions(positions: Ref) -> str:
    return f"Positions{_array([address(positions), positions.strides[0], positions.shape[1]])}"


def _kv_append(call: Call, scratch: str) -> list[str]:
    x, positions = call.inputs[1:3]
    batch, _, heads, dim = map(_text, x.shape)
    return [f"kv_append(team, {_view4(x)}, {_positions(positions)}, "
            f"{_cache(_given(call), 'cache')}, {batch}, {heads}, {dim});"]


def _relayout(call: Call, scratch: str) -> list[str]:
    """A copy of a cache: a strided one where its rows are a view of memory."""
    layout = call.node.inputs[0].type.layout
    if layout is None or layout.is_strided:
        return _copy(call, scratch)
    out = call.outputs[0]
    batch, _, heads, dim = map(_text, out.shape)
    return [f"relayout(team, {_cache(_given(call), 'cache', const=True)}, "
            f"{_view4(out, const=False)}, {batch}, {heads}, {dim});"]


def _rope_members(call: Call, kinds: str) -> str:
    """The members of a RopeAppend<kinds>."""
    q, k, v, cos, sin, positions = call.inputs[:6]
    batch, _, heads, dim = q.shape
    given = _given(call)
    views = [_view4(ref) for ref in (q, k, v)]
    angles = f"Angles{{{address(cos)}, {address(sin)}, {_array(cos.strides[:2])}}}"
    written = [_view4(call.outputs[0], const=False), _cache(given, "k_cache"),
               _cache(given, "v_cache")]
    sizes = [batch, heads, k.shape[2], dim, v.shape[3], Poly.of(cos.shape[-1]) * 2]
    members = [*views, angles, _positions(positions), *written, *sizes,
               str(bool(call.node.attr["interleaved"])).lower()]
    return f"RopeAppend<{kinds}>{_array(members)}"


def rope_scratch(node: Node) -> str:
    """C text of the scratch bytes of a rope_append: rows that are quantised are made there."""
    q, k_cache = node.inputs[0], node.inputs[6]
    if k_cache.type.stored == q.dtype:
        return ""
    return f"threads * round_up({Poly.of(q.shape[3]) * DTYPES[q.dtype]}, 64)"


def _cache_kinds(call: Call) -> str:
    return ", ".join(CTYPES[ref.dtype] for ref in call.inputs[6:8])


def _rope_append(call: Call, scratch: str) -> list[str]:
    kinds = f"{CTYPES[call.inputs[0].dtype]}, {_cache_kinds(call)}"
    return [f"rope_append(team, {_rope_members(call, kinds)}, {scratch});"]


def _norm_rope_append(call: Call, scratch: str) -> list[str]:
    weights = call.inputs[8:10]
    kind, caches = CTYPES[call.inputs[0].dtype], _cache_kinds(call)
    members = [_rope_members(call, f"{kind}, {caches}"), *map(address, weights),
               f"{float(call.node.attr['eps'])!r}f"]
    kinds = f"{kind}, {CTYPES[weights[0].dtype]}, {caches}"
    return [f"norm_rope_append(team, NormRopeAppend<{kinds}>{_array(members)}, {scratch});"]


def _take_rows(call: Call, scratch: str) -> list[str]:
    """x[b, t, *d], rows[b, r] -> [b, r, *d]."""
    x, rows, out = *call.inputs, call.outputs[0]
    batch, tokens = map(_text, x.shape[:2])
    width = product(x.shape[2:])
    return [f"for (i64 b = 0; b < {batch}; ++b)",
            f"  gather_rows(team, {address(x)} + b * {x.strides[0]}, {width}, {tokens}, "
            f"{address(rows)} + b * {rows.strides[0]}, {_text(rows.shape[1])}, {width}, "
            f"{address(out)} + b * {out.strides[0]}, {width});"]


def _gather(call: Call, scratch: str) -> list[str]:
    x, index, out = *call.inputs, call.outputs[0]
    width = product(x.shape[1:])
    return [f"gather_rows(team, {address(x)}, {width}, {_text(x.shape[0])}, {address(index)}, "
            f"{_count(index.shape)}, {width}, {address(out)}, {width});"]


def _argmax(call: Call, scratch: str) -> list[str]:
    x, out = call.inputs[0], call.outputs[0]
    n = _text(x.shape[-1])
    return [f"argmax(team, {address(x)}, {_count(x.shape[:-1])}, {n}, {n}, "
            f"{address(out)});"]


def _topk(call: Call, scratch: str) -> list[str]:
    x, (values, indices) = call.inputs[0], call.outputs
    n = _text(x.shape[-1])
    return [f"topk(team, {address(x)}, {_count(x.shape[:-1])}, {n}, {n}, "
            f"{call.node.attr['k']}, {address(values)}, {address(indices)});"]


def _arange(call: Call, scratch: str) -> list[str]:
    out = call.outputs[0]
    return ["{", f"  const Range mine = team.share({_text(out.shape[0])});",
            "  for (i64 i = mine.begin; i < mine.end; ++i)",
            f"    {address(out)}[i] = {CTYPES[out.dtype]}(i);", "}"]


def _all_reduce(call: Call, scratch: str) -> list[str]:
    x, out = call.inputs[0], call.outputs[0]
    return [f"all_reduce(team, *d.exchange, {address(x)}, {address(out)}, {_count(x.shape)});"]


def _all_gather(call: Call, scratch: str) -> list[str]:
    x, out = call.inputs[0], call.outputs[0]
    axis = call.node.attr["axis"] % len(x.shape)
    return [f"all_gather(team, *d.exchange, {address(x)}, {address(out)}, "
            f"{_count(x.shape[:axis])}, {_count(x.shape[axis:])});"]


KERNELS: dict[str, Callable[[Call, str], list[str]]] = {
    "copy": _copy, "arange": _arange, "embedding": _embedding, "matmul": _batched,
    "matmul_nt": _batched, "expert_linear": _expert_linear, "attention": attention_call,
    "attention_epilogue": attention_epilogue_call,
    "kv_append": _kv_append, "rope_append": _rope_append, "norm_rope_append": _norm_rope_append,
    "relayout": _relayout, "all_reduce": _all_reduce, "all_gather": _all_gather,
    "take_rows": _take_rows, "gather": _gather, "argmax": _argmax, "topk": _topk,
}
