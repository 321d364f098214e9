"""Graphs of one node or a few, right ones and wrong ones, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphdsl.backends.ascend.atb import (
    BLOCKS,
    PAGES,
    QUERIES,
    ROWS,
    SEQUENCES,
    SLOTS,
    DataType,
    Enum,
    Field,
    Graph,
    Node,
    Tensor,
)
from graphdsl.errors import Loc
from graphdsl.ir import Size

SIZES = {"rows": 4, "queries": 4, "sequences": 2, "slots": 16, "pages": 2, "blocks": 3, "picked": 2}
"""What the dims are when a graph is made in C++."""

View = tuple[Size, ...] | None
Fields = dict[str, Field]


@dataclass(frozen=True)
class Wrong:
    """A graph, and what the refusal says."""

    name: str
    graph: Graph
    parts: tuple[str, ...]
    soc: str = "910b"


def t(name: str, *shape: Size, dtype: str = "f16", format: str = "nd",
      host: bool = False) -> Tensor:
    return Tensor(name, dtype, shape, format, host)


def as_f32(tensor: Tensor) -> Tensor:
    return replace(tensor, dtype="f32")


def as_bf16(tensor: Tensor) -> Tensor:
    return replace(tensor, dtype="bf16")


def node(op: str, fields: Fields, inputs: Sequence[Tensor], outputs: Sequence[Tensor],
         views: dict[int, View] | None = None, line: int = 7) -> Node:
    seen = tuple((views or {}).get(index) for index in range(len(inputs)))
    return Node(op, tuple(fields.items()), tuple(inputs), tuple(outputs), seen,
                Loc("layer.py", line))


def graph(*nodes: Node, outputs: Sequence[Tensor] | None = None) -> Graph:
    """What no node writes first is an input, what no node reads an output, unless said."""
    written = [tensor for made in nodes for tensor in made.outputs if tensor not in made.inputs]
    read = [tensor for made in nodes for tensor in made.inputs]
    inputs = tuple(dict.fromkeys(tensor for tensor in read if tensor not in written))
    left = tuple(dict.fromkeys(tensor for tensor in written if tensor not in read))
    return Graph("Layer_decode", inputs, left if outputs is None else tuple(outputs), nodes)


X = t("x", ROWS, 64)
W, BIAS = t("w", 96, 64), t("bias", 96)
GAMMA = t("gamma", 64)


def linear(x: Tensor = X, w: Tensor = W, y: Tensor | None = None, bias: Tensor | None = None,
           views: dict[int, View] | None = None, **fields: Field) -> Graph:
    """y = x w^T, 64 to 96 columns."""
    made = y or t("y", ROWS, 96, dtype=x.dtype)
    given: Fields = {"transposeB": True, "hasBias": bias is not None, **fields}
    return graph(node("Linear", given, [x, w, *([bias] if bias else [])], [made], views))


def rms_norm(x: Tensor = X, gamma: Tensor = GAMMA, y: Tensor | None = None,
             **fields: Field) -> Graph:
    given: Fields = {"layerType": Enum("RMS_NORM_NORM"), "normParam.epsilon": 1e-6, **fields}
    return graph(node("RmsNorm", given, [x, gamma], [y or replace(x, name="y")]))


def pre_norm(x: Tensor = X, res: Tensor | None = None, gamma: Tensor = GAMMA,
             fields: Fields | None = None) -> Graph:
    given: Fields = {"layerType": Enum("RMS_NORM_PRENORM"), "preNormParam.epsilon": 1e-6,
                     "preNormParam.hasBias": False, **(fields or {})}
    return graph(node("RmsNorm", given, [x, res or replace(x, name="res"), gamma],
                      [replace(x, name="y"), replace(x, name="sum")]))


def layer_norm(x: Tensor = X, gamma: Tensor = GAMMA, axis: int = 1, kind: str = "NORM",
               epsilon: float = 1e-5) -> Graph:
    given: Fields = {"layerType": Enum(f"LAYER_NORM_{kind}"), "normParam.epsilon": epsilon,
                     "normParam.beginNormAxis": axis, "normParam.beginParamsAxis": axis}
    return graph(node("LayerNorm", given, [x, gamma, replace(gamma, name="beta")],
                      [replace(x, name="y")]))


def rope(q: Tensor = X, k: Tensor | None = None, cos: Tensor | None = None,
         sin: Tensor | None = None, coefficient: int = 2,
         views: dict[int, View] | None = None) -> Graph:
    """4 heads of q and 2 of k, of 16."""
    k = k or t("k", ROWS, 32, dtype=q.dtype)
    cos = cos or t("cos", ROWS, 16, dtype=q.dtype)
    lengths = t("lengths", SEQUENCES, dtype="i32", host=True)
    return graph(node("Rope", {"rotaryCoeff": coefficient},
                      [q, k, cos, sin or replace(cos, name="sin"), lengths],
                      [replace(q, name="q_turned"), replace(k, name="k_turned")], views))


def elewise(kind: str, x: Tensor = X, y: Tensor | None = None, z: Tensor | None = None,
            **fields: Field) -> Graph:
    given: Fields = {"elewiseType": Enum(f"ELEWISE_{kind}"), **fields}
    return graph(node("Elewise", given, [x, *([y] if y else [])], [z or replace(x, name="z")]))


def cast(x: Tensor, y: str, to: str | None = None) -> Graph:
    given: Fields = {"elewiseType": Enum("ELEWISE_CAST"), "outTensorType": DataType(to or y)}
    return graph(node("Elewise", given, [x], [replace(x, name="y", dtype=y)]))


def activation(kind: str, x: Tensor = X, y: Tensor | None = None, **fields: Field) -> Graph:
    given: Fields = {"activationType": Enum(f"ACTIVATION_{kind}", free=True), **fields}
    return graph(node("Activation", given, [x], [y or replace(x, name="y")]))


def split(widths: Sequence[int], x: Tensor = X, **fields: Field) -> Graph:
    given: Fields = {"splitDim": 1, "splitNum": len(widths), **fields}
    return graph(node("Split", given, [x], [replace(x, name=f"part{i}", shape=(ROWS, width))
                                            for i, width in enumerate(widths)]))


def concat(x: Tensor = X, y: Tensor | None = None, columns: int = 128, more: bool = False) -> Graph:
    given = [x, y or replace(x, name="y"), *([replace(x, name="z")] if more else [])]
    return graph(node("Concat", {"concatDim": 1}, given,
                      [replace(x, name="all", shape=(ROWS, columns))]))


def transpose(perm: tuple[int, ...], x: Tensor = X, y: Tensor | None = None) -> Graph:
    return graph(node("Transpose", {"perm": perm}, [x],
                      [y or replace(x, name="y", shape=x.shape[::-1])]))


def softmax(axes: tuple[int, ...], x: Tensor = X) -> Graph:
    return graph(node("Softmax", {"axes": axes}, [x], [replace(x, name="y")]))


def gather(indices: Tensor | None = None, y: Tensor | None = None, **fields: Field) -> Graph:
    ids = indices or t("ids", ROWS, dtype="i32")
    return graph(node("Gather", {"axis": 0, "batchDims": 0, **fields}, [t("table", 99, 64), ids],
                      [y or X]))


def encoder(q: Tensor = X, k: Tensor | None = None, v: Tensor | None = None,
            mask: Tensor | None = None, lengths: Tensor | None = None, out: Tensor | None = None,
            masked: bool = True, views: dict[int, View] | None = None, **fields: Field) -> Graph:
    """Causal attention of 4 heads over 2, of 16, whose keys are those of the call."""
    k = k or t("k", ROWS, 32, dtype=q.dtype)
    mask = mask or t("mask", 128, 128, dtype=q.dtype)
    given: Fields = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25,
                     "calcType": Enum("PA_ENCODER"), "isTriuMask": 1,
                     "maskType": Enum("MASK_TYPE_NORM_COMPRESS"), **fields}
    lengths = lengths or t("lengths", SEQUENCES, dtype="i32", host=True)
    return graph(node("SelfAttention", given,
                      [q, k, v or replace(k, name="v"), *([mask] if masked else []), lengths],
                      [out or replace(q, name="out")], views))


def contiguous(q: Tensor = X, k: Tensor | None = None, cache: Tensor | None = None,
               mask: Tensor | None = None, offsets: Tensor | None = None,
               out: Tensor | None = None, masked: bool = True, **fields: Field) -> Graph:
    """The same over a contiguous cache."""
    k = k or t("k", ROWS, 32, dtype=q.dtype)
    cache = cache or t("kv_k", 1, SEQUENCES, SLOTS, 32, dtype=q.dtype)
    mask = mask or t("mask", SEQUENCES, 2, SLOTS, dtype=q.dtype)
    lengths = t("lengths", SEQUENCES, dtype="i32", host=True)
    offsets = offsets or replace(lengths, name="offsets")
    given: Fields = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25, "calcType": Enum("UNDEFINED"),
                     "maskType": Enum("MASK_TYPE_NORM"), **fields}
    return graph(node("SelfAttention", given,
                      [q, k, replace(k, name="v"), cache, replace(cache, name="kv_v"),
                       *([mask] if masked else []), offsets, lengths, t("layer", 1, dtype="i32")],
                      [out or replace(q, name="out")]))


def paged(q: Tensor | None = None, cache: Tensor | None = None, contexts: Tensor | None = None,
          table: Tensor | None = None, **fields: Field) -> Graph:
    """The same over pages."""
    q = q or t("q", ROWS, 4, 16)
    cache = cache or t("kv_k", BLOCKS, 16, 2, q.shape[2], dtype=q.dtype)
    given: Fields = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25, **fields}
    contexts = contexts or t("contexts", QUERIES, dtype="i32", host=True)
    table = table or t("table", QUERIES, PAGES, dtype="i32")
    return graph(node("PagedAttention", given,
                      [q, cache, replace(cache, name="kv_v"), table, contexts],
                      [replace(q, name="out")]))


def append(k: Tensor | None = None, v: Tensor | None = None, cache: Tensor | None = None,
           slots: Tensor | None = None, outputs: Sequence[Tensor] | None = None,
           views: dict[int, View] | None = None, **fields: Field) -> Graph:
    """New rows of 2 heads of 16 into pages of 16 slots."""
    k = k or t("k", ROWS, 2, 16)
    cache = cache or t("kv_k", BLOCKS, 16, 2, 16, dtype=k.dtype)
    caches = [cache, replace(cache, name="kv_v")]
    slots = slots or t("slots", ROWS, dtype="i32")
    return graph(node("ReshapeAndCache", dict(fields), [k, v or replace(k, name="v"), *caches,
                                                        slots],
                      caches if outputs is None else outputs, views), outputs=outputs or ())


def kv_cache(new: Tensor | None = None, past: Tensor | None = None) -> Graph:
    new = new or t("new", ROWS, 32)
    past = past or t("past", 1, SEQUENCES, SLOTS, 32, dtype=new.dtype)
    lengths = t("lengths", SEQUENCES, dtype="i32", host=True)
    return graph(node("KvCache", {}, [new, t("layer", 1, dtype="i32"), past,
                                      replace(lengths, name="offsets"), lengths], []),
                 outputs=())
