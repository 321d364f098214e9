"""One decoder layer of Llama, written as plain maths: `graphdsl build examples/llama_layer.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl import KVCache, Layer, Param, Value
from graphdsl.ops import (
    attention,
    linear,
    merge_heads,
    rms_norm,
    rope,
    rope_angles,
    silu,
    split_heads,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config:
    """The sizes of Llama 2 7B; change one with `--set heads=8`."""

    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    ffn: int = 11008
    eps: float = 1e-5
    theta: float = 10000.0


LLAMA_7B = Config()


class LlamaLayer(Layer):
    """Attention, then a gated feed-forward network, each behind a norm and added to its input."""

    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: Config = LLAMA_7B) -> None:
        c = self.config = config
        self.attn_norm = Param(c.hidden)
        self.wq = Param(c.heads * c.head_dim, c.hidden)
        self.wk = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wv = Param(c.kv_heads * c.head_dim, c.hidden)
        self.wo = Param(c.hidden, c.heads * c.head_dim)
        self.ffn_norm = Param(c.hidden)
        self.w_gate = Param(c.ffn, c.hidden)
        self.w_up = Param(c.ffn, c.hidden)
        self.w_down = Param(c.hidden, c.ffn)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value) -> Value:
        c = self.config
        cos, sin = rope_angles(positions, rotary_dim=c.head_dim, theta=c.theta)

        h = rms_norm(x, self.attn_norm, eps=c.eps)
        q = split_heads(linear(h, self.wq), c.heads)
        k = split_heads(linear(h, self.wk), c.kv_heads)
        v = split_heads(linear(h, self.wv), c.kv_heads)
        kv = self.kv.append(rope(k, cos, sin), v, positions)
        attended = attention(rope(q, cos, sin), kv.k, kv.v, positions)
        x = x + linear(merge_heads(attended), self.wo)

        h = rms_norm(x, self.ffn_norm, eps=c.eps)
        return x + linear(silu(linear(h, self.w_gate)) * linear(h, self.w_up), self.w_down)


def peer(config: Config) -> tuple[torch.nn.Module, ...]:
    """The same layer in plain torch and in transformers: `graphdsl bench --vs eager,compile`
    compares with the faster."""
    from graphdsl.models.llama_torch import llama_peers

    return llama_peers(config)
