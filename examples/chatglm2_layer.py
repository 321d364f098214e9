"""One decoder layer of ChatGLM2, as plain maths: `graphdsl build examples/chatglm2_layer.py`."""

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
    split,
    split_heads,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config:
    """The sizes of ChatGLM2 6B; change one with `--set kv_heads=4`. head_dim is a multiple of 4:
    rope turns one half of a head, pair by pair."""

    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 2
    head_dim: int = 128
    ffn: int = 13696
    eps: float = 1e-5
    theta: float = 10000.0


CHATGLM2_6B = Config()


class ChatGLM2Layer(Layer):
    """Attention whose heads share a few of k and v, then a gated feed-forward network.

    q, k and v come from one weight, gate and up from another, as in ChatGLM2's files.
    """

    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: Config = CHATGLM2_6B) -> None:
        c = self.config = config
        merged = (c.heads + 2 * c.kv_heads) * c.head_dim
        self.attn_norm = Param(c.hidden)
        self.wqkv, self.bqkv = Param(merged, c.hidden), Param(merged)
        self.wo = Param(c.hidden, c.heads * c.head_dim)
        self.ffn_norm = Param(c.hidden)
        self.w_gate_up = Param(2 * c.ffn, c.hidden)
        self.w_down = Param(c.hidden, c.ffn)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value) -> Value:
        c = self.config
        cos, sin = rope_angles(positions, rotary_dim=c.head_dim // 2, theta=c.theta)

        h = rms_norm(x, self.attn_norm, eps=c.eps)
        heads = split_heads(linear(h, self.wqkv, self.bqkv), c.heads + 2 * c.kv_heads)
        q, k, v = split(heads, sizes=(c.heads, c.kv_heads, c.kv_heads), axis=-2)
        kv = self.kv.append(rope(k, cos, sin, interleaved=True), v, positions)
        attended = attention(rope(q, cos, sin, interleaved=True), kv.k, kv.v, positions)
        x = x + linear(merge_heads(attended), self.wo)

        h = rms_norm(x, self.ffn_norm, eps=c.eps)
        gate, up = split(linear(h, self.w_gate_up), sizes=(c.ffn, c.ffn))
        return x + linear(silu(gate) * up, self.w_down)


def peer(config: Config) -> torch.nn.Module:
    """The same layer in plain torch, for `graphdsl bench --vs eager,compile`."""
    from graphdsl.models.chatglm_torch import TorchChatGLM2Layer

    return TorchChatGLM2Layer(config)
