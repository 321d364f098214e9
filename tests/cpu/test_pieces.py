"""The pieces of a concat, made by every kind of kernel: in place where the kernel can write there,
and copied where not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bundle import compare_bundle

from graphdsl.builder import BuildOptions
from graphdsl.ir import Dim, Graph, TensorType, Value
from graphdsl.layer import BATCH
from graphdsl.ops import (
    argmax,
    attention,
    concat,
    embedding,
    expert_linear,
    gather,
    linear,
    matmul,
    matmul_nt,
    reshape,
    rms_norm,
    rope,
    softmax,
    take_rows,
    tanh,
    topk,
    transpose,
)

SHAPE = (BATCH, Dim("tokens"), 8)
X = Value(TensorType(SHAPE, "f32"), name="x")
ROWS = Value(TensorType(SHAPE[:2], "i32"), name="rows")
SQUARE = Value(TensorType((8, 8), "f32"), name="square", kind="param")
ROW = Value(TensorType((8,), "f32"), name="row", kind="param")
EXPERTS = Value(TensorType((3, 8, 8), "f32"), name="experts", kind="param")


def heads(x: Value) -> Value:
    return reshape(x, shape=(*x.shape[:2], 2, 4))


MAKERS: dict[str, Callable[[], Value]] = {
    "matmul by a param": lambda: matmul_nt(X, SQUARE),
    "matmul with an epilogue": lambda: tanh(linear(X, SQUARE, ROW)),
    "matmul with a prologue": lambda: linear(rms_norm(X, ROW, eps=1e-3), SQUARE),
    "product of activations": lambda: matmul(matmul(X, transpose(X, order=(0, 2, 1))), X),
    "loop": lambda: softmax(X),
    "loop over the tokens": lambda: transpose(tanh(transpose(X, order=(0, 2, 1))),
                                              order=(0, 2, 1)),
    "attention": lambda: reshape(attention(heads(X), heads(X), heads(X * 2.0)), shape=SHAPE),
    "rope of pairs": lambda: reshape(rope(heads(X), X[..., :2], X[..., 2:4], interleaved=True),
                                     shape=SHAPE),
    "embedding": lambda: embedding(argmax(X), SQUARE),
    "gather": lambda: gather(SQUARE * ROW, argmax(X)),
    "rows that are taken": lambda: take_rows(X, ROWS),
    "experts": lambda: expert_linear(X, EXPERTS, argmax(X[..., :3])),
    "largest": lambda: concat(topk(X, k=4)[0], topk(tanh(X), k=4)[0], axis=-1),
}


def pieces(name: str, made: Callable[[], Value]) -> Graph:
    """What is made as a piece along every axis, and as every other column."""
    columns = [reshape(x, shape=(*SHAPE, 1)) for x in (made(), X)]
    results = (concat(made(), X, axis=1), concat(X, made(), axis=2), concat(*columns, axis=3))
    alone = Graph(name, (), (), (), results)
    used = dict.fromkeys(v for node in alone.nodes for v in node.inputs if v.node is None)
    return Graph(name, tuple(v for v in used if not v.is_param),
                 tuple(v for v in used if v.is_param), (), results)


@pytest.mark.parametrize("part", [0, 1])
def test_pieces_of_a_concat(part: int, options: BuildOptions) -> None:
    graphs = [pieces(name, made) for name, made in list(MAKERS.items())[part::2]]
    compare_bundle(graphs, options, sizes=({"batch": 2, "tokens": 5}, {"batch": 1, "tokens": 1}),
                   threads=(1, 2))
