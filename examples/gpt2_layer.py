"""One decoder layer of GPT-2, written as plain maths: `graphdsl build examples/gpt2_layer.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl import KVCache, Layer, Param, Value
from graphdsl.ops import (
    attention,
    gelu_tanh,
    layer_norm,
    linear,
    merge_heads,
    split,
    split_heads,
    transpose,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config:
    """The sizes of GPT-2 small; change one with `--set heads=16`. heads divides hidden."""

    hidden: int = 768
    heads: int = 12
    ffn: int = 3072
    eps: float = 1e-5


GPT2_SMALL = Config()


class GPT2Layer(Layer):
    """Attention, then a feed-forward network, each behind a norm and added to its input.

    Weights are [in, out], as GPT-2's files have them: they are turned round once, when loaded.
    Positions were added to the embedding; here they only say where in the cache a token stands.
    """

    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: Config = GPT2_SMALL) -> None:
        c = self.config = config
        self.ln_1, self.ln_1_bias = Param(c.hidden), Param(c.hidden)
        self.c_attn, self.c_attn_bias = Param(c.hidden, 3 * c.hidden), Param(3 * c.hidden)
        self.c_proj, self.c_proj_bias = Param(c.hidden, c.hidden), Param(c.hidden)
        self.ln_2, self.ln_2_bias = Param(c.hidden), Param(c.hidden)
        self.mlp_in, self.mlp_in_bias = Param(c.hidden, c.ffn), Param(c.ffn)
        self.mlp_out, self.mlp_out_bias = Param(c.ffn, c.hidden), Param(c.hidden)
        self.kv = KVCache(c.heads, c.hidden // c.heads)

    def forward(self, x: Value, positions: Value) -> Value:
        c = self.config
        h = layer_norm(x, self.ln_1, self.ln_1_bias, eps=c.eps)
        qkv = conv1d(h, self.c_attn, self.c_attn_bias)
        q, k, v = (split_heads(part, c.heads) for part in split(qkv, sizes=(c.hidden,) * 3))
        kv = self.kv.append(k, v, positions)
        attended = merge_heads(attention(q, kv.k, kv.v, positions))
        x = x + conv1d(attended, self.c_proj, self.c_proj_bias)

        h = layer_norm(x, self.ln_2, self.ln_2_bias, eps=c.eps)
        h = gelu_tanh(conv1d(h, self.mlp_in, self.mlp_in_bias))
        return x + conv1d(h, self.mlp_out, self.mlp_out_bias)


def conv1d(x: Value, w: Value, bias: Value) -> Value:
    """x @ w + bias for a weight [in, out], which is how GPT-2 keeps them."""
    return linear(x, transpose(w, order=(1, 0)), bias)


def peer(config: Config) -> tuple[torch.nn.Module, ...]:
    """The same layer in plain torch and in transformers: `graphdsl bench --vs eager,compile`
    compares with the faster."""
    from graphdsl.models.gpt2_torch import gpt2_peers

    return gpt2_peers(config)
