"""A gate behind an attention, in decoding and in long inputs, as one generated call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param, trace
from graphdsl.ops import attention, linear, merge_heads, sigmoid, split_heads


@dataclass(frozen=True)
class Config:
    hidden: int = 24
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 12


class Gated(Layer):
    """Attention whose merged heads are gated, scaled by a weight, and by a number a token."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: Config) -> None:
        c = self.config = config
        width = c.heads * c.head_dim
        self.wq, self.wg = Param(width, c.hidden), Param(width, c.hidden)
        self.wk = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wv = Param(c.kv_heads * c.head_dim, c.hidden)
        self.scale, self.wo = Param(width), Param(c.hidden, width)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value) -> Any:
        c = self.config
        q = split_heads(linear(x, self.wq), c.heads)
        k, v = (split_heads(linear(x, w), c.kv_heads) for w in (self.wk, self.wv))
        kv = self.kv.append(k, v, positions)
        heads = merge_heads(attention(q, kv.k, kv.v, positions))
        gated = heads * sigmoid(linear(x, self.wg)) * self.scale * x[..., :1]
        return linear(gated, self.wo)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_gated(dtype: str, compare: Callable[..., Any]) -> None:
    sizes = ({"batch": 1, "tokens": 1}, {"batch": 3, "tokens": 5},
             {"batch": 2, "tokens": 40, "slots": 48})
    operator = compare(trace(Gated(Config()), dtype), dtype, sizes, (1, 2))
    source = (operator.path / "src" / "Gated.cpp").read_text()
    assert source.count("t.finish_with = &finish;") == 1
