"""Attention as C++: a struct of pointers, strides and sizes, and what follows a finished row."""

from __future__ import annotations

from collections.abc import Sequence

from graphdsl.call_plan import Call
from graphdsl.expr import ZERO, Poly
from graphdsl.ir import Affine, Dim, Node, Size, Value
from graphdsl.views import Ref

from .c_types import CTYPES
from .caches import cache_text
from .loops import Emitter, address, aligned_strides, pointer_text

ROW = "sums"
"""What the generated code calls a finished row."""


def attention_of(node: Node) -> tuple[Node, tuple[Value, ...]]:
    """The attention in an attention_epilogue, and the leaves of the body."""
    assert node.body is not None
    return next(n for n in node.body.nodes if n.name == "attention"), node.body.leaves


def attention_call(call: Call, scratch: str) -> list[str]:
    """An attention that stores its rows."""
    out = call.outputs[0]
    stores = [f"  t.out = {address(out)};",
              *(f"  t.out_stride[{i}] = {out.strides[i]};" for i in range(3))]
    return ["{", *_members(call.node, call.inputs), *stores,
            f"  attention(team, t, {scratch});", "}"]


def attention_epilogue_call(call: Call, scratch: str) -> list[str]:
    """An attention whose finished rows are worked on before they are stored."""
    node, leaves = attention_of(call.node)
    ref = dict(zip(leaves, call.inputs, strict=True))
    kind = "const decltype(finish)*"
    return ["{", *_members(node, [ref[v] for v in node.inputs]), *_finish(call, node),
            "  t.finish = [](const void* with, i64 b, i64 t, i64 h, const float* row) {",
            f"    (*static_cast<{kind}>(with))(b, t, h, row);", "  };",
            "  t.finish_with = &finish;", f"  attention(team, t, {scratch});", "}"]


def _finish(call: Call, node: Node) -> list[str]:
    """The function that is given row (i0, i1, i2) of batch, token and head."""
    body = call.node.body
    assert body is not None
    read = {v for n in body.nodes if n is not node for v in n.inputs if v.node is None}
    operands = [(f"x{i}", v, r) for i, (v, r) in
                enumerate(zip(body.leaves, call.inputs, strict=True)) if v in read]
    results = [(f"y{i}", r) for i, r in enumerate(call.outputs)]
    pointers = [_pointer(name, r, True) for name, _, r in operands]
    pointers += [_pointer(name, r, False) for name, r in results]
    emitter = Emitter(body, {v: name for name, v, _ in operands}, {node.outputs[0]: "acc0"})
    phase = emitter.run([name for name, _ in results])[0]
    unused = "[[maybe_unused]] "
    return [f"  const auto finish = [&]({unused}i64 i0, {unused}i64 i1, {unused}i64 i2, "
            f"const float* {ROW}) {{",
            *(f"    {unused}{line}" for line in (*pointers, *phase.before)),
            f"    for_lanes({Poly.of(node.out_types[0].shape[-1])}, [&](i64 i, auto lanes) {{",
            f"      const F acc0 = load({ROW} + i, lanes);",
            *(f"      {line}" for line in phase.columns), "    });", "  };"]


def _pointer(name: str, ref: Ref, constant: bool) -> str:
    return pointer_text(name, ref, aligned_strides(ref, 4)[:-1], constant)


def _members(node: Node, inputs: Sequence[Ref]) -> list[str]:
    """The members of the struct but for what becomes of its rows."""
    attr = node.attr
    names = node.op.present(len(node.inputs), attr)
    given = dict(zip(names, inputs, strict=True))
    q, k, v = given["q"], given["k"], given["v"]
    batch, tokens, heads, dim = q.shape
    scale = attr["scale"] if attr["scale"] is not None else float(dim) ** -0.5  # type: ignore[arg-type]
    kinds = ", ".join(CTYPES[ref.dtype] for ref in (q, k, v))
    members: list[tuple[str, object]] = [
        ("q", address(q)), *((f"q_stride[{i}]", q.strides[i]) for i in range(3)),
        *((name, cache_text(value.type, given[name], given.get("table")))
          for name, value in zip(names, node.inputs, strict=True) if name in ("k", "v")),
        ("batch", batch), ("tokens", tokens), ("heads", heads), ("kv_heads", k.shape[2]),
        ("dim", dim), ("value_dim", v.shape[3]),
        ("causal", str(bool(attr["causal"])).lower()), ("window", attr["window"]),
        ("scale", f"{float(scale)!r}f"), ("softcap", f"{float(attr['softcap'])!r}f")]
    if "positions" in given:
        positions = given["positions"]
        members += [("positions", address(positions)), ("position_stride", positions.strides[0])]
    if "mask" in given:
        members += _mask_members(given["mask"], k.shape[1])
    return [f"  Attention<{kinds}> t{{}};",
            *(f"  t.{name} = {Poly.of(value) if isinstance(value, Dim | Affine) else value};"
              for name, value in members)]


def _mask_members(mask: Ref, slots: Size) -> list[tuple[str, object]]:
    """Those of a mask, which speaks of all slots where it has a single key."""
    strides: list[object] = [ZERO] * (4 - len(mask.shape))
    strides += [ZERO if size == 1 else s for size, s in zip(mask.shape, mask.strides, strict=True)]
    keys: object = slots
    if mask.shape and isinstance(mask.shape[-1], Dim) and mask.shape[-1] != slots:
        found = Poly.of(mask.shape[-1])
        keys = f"{found} == 1 ? {Poly.of(slots)} : {found}"
        strides[-1] = f"{found} == 1 ? 0 : {mask.strides[-1]}"
    return [("mask", address(mask)),
            ("mask_kind", {"bool": 1, "f32": 2}.get(mask.dtype, 3)), ("mask_keys", keys),
            *((f"mask_stride[{i}]", s) for i, s in enumerate(strides))]


def heads_together(keys: Value) -> Size:
    """As many heads of keys [batch, slots, kv_heads, dim] as the kernel may read at once: all where
    their rows of a slot can lie side by side, else one."""
    layout = keys.type.layout
    apart = layout is not None and layout.order == "bnsd" and layout.policy != "paged"
    return 1 if apart else keys.shape[2]
