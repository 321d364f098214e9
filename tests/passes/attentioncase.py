"""Operands of attention written as maths, and what is left of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from passcase import CPU, leaf, names

from graphdsl.ir import Dim, Graph, Value
from graphdsl.layer import BATCH
from graphdsl.ops.linear import matmul
from graphdsl.ops.shape import arange, reshape, transpose
from graphdsl.passes.pipeline import run_pipeline

TOKENS = Dim("tokens")
HEADS, KV_HEADS, DIM = 4, 2, 6
ANY = replace(CPU, dtypes=frozenset({"f32", "bf16", "f16"}))


def operands(dtype: str = "f32", kv_heads: int = HEADS) -> tuple[Value, Value, Value]:
    """q, k and v, [batch, heads, tokens, d]."""
    q = leaf("q", BATCH, HEADS, TOKENS, DIM, dtype=dtype)
    k, v = (leaf(n, BATCH, kv_heads, TOKENS, DIM, dtype=dtype) for n in "kv")
    return q, k, v


def scores_of(q: Value, k: Value) -> Any:
    return matmul(q, transpose(k, order=(0, 1, 3, 2)))


def attended(graph: Graph) -> dict[str, Any]:
    """The attributes of the only attention that is left, beside it nothing but views."""
    lowered = run_pipeline(graph, ANY, verify=True)
    found = [n for n in lowered.graph.nodes if n.op.kind != "view"]
    kept = [n for n in found if n.name == "attention"]
    assert [n.name for n in found] == ["attention"], names(lowered.graph)
    return kept[0].attr


def positions() -> Value:
    return leaf("positions", BATCH, TOKENS, dtype="i32")


def rows(at: Value) -> Any:
    return reshape(at, shape=(BATCH, 1, TOKENS, 1))


def keys() -> Any:
    return arange(size=TOKENS)


def tokens() -> Any:
    return arange(size=TOKENS)[:, None]
