"""Norms of the heads of q and k, rope and the appends as one generated call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param, trace
from graphdsl.ops import (
    attention,
    cast,
    linear,
    merge_heads,
    rms_norm,
    rope,
    rope_angles,
    split_heads,
)


@dataclass(frozen=True)
class Config:
    hidden: int = 24
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 12
    rotary: int = 12
    interleaved: bool = False
    plus_one: bool = False


class NormedHeads(Layer):
    """Attention as Qwen3 has it, or with Gemma's (1 + w)."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: Config) -> None:
        c = self.config = config
        self.wq = Param(c.heads * c.head_dim, c.hidden)
        self.wk = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wv = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wo = Param(c.hidden, c.heads * c.head_dim)
        self.q_norm, self.k_norm = Param(c.head_dim), Param(c.head_dim)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def normed(self, x: Value, weight: Value) -> Value:
        if self.config.plus_one:
            weight = 1.0 + cast(weight, dtype="f32")
        y: Value = rms_norm(x, weight, eps=1e-6)
        return y

    def forward(self, x: Value, positions: Value) -> Any:
        c = self.config
        cos, sin = rope_angles(positions, rotary_dim=c.rotary, theta=1e4)
        q = self.normed(split_heads(linear(x, self.wq), c.heads), self.q_norm)
        k = self.normed(split_heads(linear(x, self.wk), c.kv_heads), self.k_norm)
        v = split_heads(linear(x, self.wv), c.kv_heads)
        kv = self.kv.append(rope(k, cos, sin, interleaved=c.interleaved), v, positions)
        turned = rope(q, cos, sin, interleaved=c.interleaved)
        return linear(merge_heads(attention(turned, kv.k, kv.v, positions)), self.wo)


@pytest.mark.parametrize(("config", "dtype"), [
    (Config(), "f32"), (Config(rotary=6, interleaved=True), "bf16"),
    (Config(plus_one=True), "bf16")], ids=["plain", "partial", "plus one"])
def test_normed_heads(config: Config, dtype: str, compare: Callable[..., Any]) -> None:
    sizes = ({"batch": 1, "tokens": 1}, {"batch": 3, "tokens": 7})
    operator = compare(trace(NormedHeads(config), dtype), dtype, sizes, (1, 2))
    source = (operator.path / "src" / "NormedHeads.cpp").read_text()
    assert source.count("norm_rope_append(team") == 1
