"""One layer of Gemma 3, written as plain maths: a norm before and behind each part, norms of q and
k, and a window of tokens that are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl import KVCache, Layer, Param, Value
from graphdsl.ops import (
    attention,
    cast,
    gelu_tanh,
    linear,
    merge_heads,
    rms_norm,
    rope,
    rope_angles,
    split_heads,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config:
    """The sizes of Gemma 3 1B; change one with `--set heads=8`. With window=0 all tokens are seen,
    as in every sixth layer, whose theta is a million."""

    hidden: int = 1152
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 256
    ffn: int = 6912
    eps: float = 1e-6
    theta: float = 10000.0
    window: int = 512


GEMMA_3_1B = Config()


def plus_one(weight: Value) -> Value:
    """1 + weight, in f32: a norm of 16 bits by it is rounded once, after the product."""
    return cast(weight, dtype="f32") + 1.0


class GemmaLayer(Layer):
    """Attention, then a gated feed-forward network, each between two norms and added to its
    input."""

    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: Config = GEMMA_3_1B) -> None:
        c = self.config = config
        self.attn_norm = Param(c.hidden)
        self.wq = Param(c.heads * c.head_dim, c.hidden)
        self.wk = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wv = Param(c.kv_heads * c.head_dim, c.hidden)
        self.q_norm, self.k_norm = Param(c.head_dim), Param(c.head_dim)
        self.wo = Param(c.hidden, c.heads * c.head_dim)
        self.attn_out_norm = Param(c.hidden)
        self.ffn_norm = Param(c.hidden)
        self.w_gate = Param(c.ffn, c.hidden)
        self.w_up = Param(c.ffn, c.hidden)
        self.w_down = Param(c.hidden, c.ffn)
        self.ffn_out_norm = Param(c.hidden)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value) -> Value:
        c = self.config
        cos, sin = rope_angles(positions, rotary_dim=c.head_dim, theta=c.theta)

        h = rms_norm(x, plus_one(self.attn_norm), eps=c.eps)
        q, k, v = linear(h, self.wq), linear(h, self.wk), linear(h, self.wv)
        q = rms_norm(split_heads(q, c.heads), plus_one(self.q_norm), eps=c.eps)
        k = rms_norm(split_heads(k, c.kv_heads), plus_one(self.k_norm), eps=c.eps)
        kv = self.kv.append(rope(k, cos, sin), split_heads(v, c.kv_heads), positions)
        attended = attention(rope(q, cos, sin), kv.k, kv.v, positions, window=c.window)
        h = linear(merge_heads(attended), self.wo)
        x = x + rms_norm(h, plus_one(self.attn_out_norm), eps=c.eps)

        h = rms_norm(x, plus_one(self.ffn_norm), eps=c.eps)
        h = linear(gelu_tanh(linear(h, self.w_gate)) * linear(h, self.w_up), self.w_down)
        return x + rms_norm(h, plus_one(self.ffn_out_norm), eps=c.eps)


def peer(config: Config) -> tuple[torch.nn.Module, ...]:
    """The same layer in plain torch and in transformers: `graphdsl bench --vs eager,compile`
    compares with the faster."""
    from graphdsl.models.gemma_torch import gemma_peers

    return gemma_peers(config)
