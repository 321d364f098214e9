"""The Gemma 3 text model in the DSL, its config and the names of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param
from graphdsl.models import llama
from graphdsl.models.decoder import Decoder, names_in_layers
from graphdsl.ops import attention, cast, gelu_tanh, linear, rms_norm, rope, rope_angles, tanh
from graphdsl.ops.math import rounded
from graphdsl.ops.shape import merge_heads, split_heads


@dataclass(frozen=True)
class Config(llama.Config):
    """A Llama's sizes and constants, and what Gemma 3 adds.

    Layers in `global_layers` see all tokens and turn by theta and scaling, others the last `window`
    and turn by local_theta. `scale` is that of the scores, `softcap` (0: none) bounds the logits.
    """

    global_layers: tuple[int, ...] = ()
    local_theta: float = 10000.0
    scale: float = 256 ** -0.5
    softcap: float = 0.0


GEMMA_3_1B = Config(vocab=262144, hidden=1152, layers=26, heads=4, kv_heads=1, head_dim=256,
                    ffn=6912, eps=1e-6, theta=1e6, window=512, tied=True,
                    global_layers=(5, 11, 17, 23))


def plus_one(weight: Value) -> Value:
    """1 + weight, in f32: a norm of 16 bits by it is rounded once, after the product."""
    y: Value = cast(weight, dtype="f32") + 1.0
    return y


class GemmaLayer(Layer):
    """Attention to the last `window` tokens (0: all), then a gated feed-forward network, each
    between two norms and added to its input; the rotary angles are given.
    Source: Gemma 3 Technical Report, arXiv 2503.19786."""

    signature = llama.LlamaLayer.signature

    def __init__(self, config: Config = GEMMA_3_1B, window: int = 0) -> None:
        c = self.config = config
        self.window = window
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.attn_norm, self.attn_out_norm = Param(c.hidden), Param(c.hidden)
        self.wq, self.wo = Param(q, c.hidden), Param(c.hidden, q)
        self.wk, self.wv = Param(kv, c.hidden), Param(kv, c.hidden)
        self.q_norm, self.k_norm = Param(c.head_dim), Param(c.head_dim)
        self.ffn_norm, self.ffn_out_norm = Param(c.hidden), Param(c.hidden)
        self.w_gate, self.w_up = Param(c.ffn, c.hidden), Param(c.ffn, c.hidden)
        self.w_down = Param(c.hidden, c.ffn)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        c = self.config
        h = rms_norm(x, plus_one(self.attn_norm), eps=c.eps)
        q, k, v = linear(h, self.wq), linear(h, self.wk), linear(h, self.wv)
        q = rms_norm(split_heads(q, c.heads), plus_one(self.q_norm), eps=c.eps)
        k = rms_norm(split_heads(k, c.kv_heads), plus_one(self.k_norm), eps=c.eps)
        kv = self.kv.append(rope(k, cos, sin), split_heads(v, c.kv_heads), positions)
        h = attention(rope(q, cos, sin), kv.k, kv.v, positions, scale=c.scale, window=self.window)
        x = x + rms_norm(linear(merge_heads(h), self.wo), plus_one(self.attn_out_norm), eps=c.eps)

        h = rms_norm(x, plus_one(self.ffn_norm), eps=c.eps)
        h = linear(gelu_tanh(linear(h, self.w_gate)) * linear(h, self.w_up), self.w_down)
        y: Value = x + rms_norm(h, plus_one(self.ffn_out_norm), eps=c.eps)
        return y


class Gemma(Decoder):
    """Scaled embeddings, the layers, a norm and a head: see Decoder."""

    def __init__(self, config: Config = GEMMA_3_1B) -> None:
        super().__init__(config)
        self.layers = [GemmaLayer(config, 0 if i in config.global_layers else config.window)
                       for i in range(config.layers)]
        self.norm, self.head = Param(config.hidden), self.new_head()

    def embedded(self, ids: Value) -> Value:
        x = super().embedded(ids)
        return x * rounded(self.config.hidden ** 0.5, x.dtype)  # as the table's dtype has it

    def shared(self, positions: Value) -> tuple[Value, ...]:
        c, width = self.config, self.config.head_dim
        return (*rope_angles(positions, rotary_dim=width, theta=c.local_theta),
                *rope_angles(positions, rotary_dim=width, theta=c.theta, scaling=c.scaling))

    def given(self, index: int, shared: tuple[Value, ...]) -> tuple[Value, ...]:
        return shared[2:] if index in self.config.global_layers else shared[:2]

    def last_norm(self, x: Value) -> Value:
        y: Value = rms_norm(x, plus_one(self.norm), eps=self.config.eps)
        return y

    def logits(self, h: Value) -> Value:
        cap, result = self.config.softcap, super().logits(h)
        return tanh(result / cap) * cap if cap else result


LAYER_NAMES = {
    **llama.LAYER_NAMES,
    "attn_out_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "ffn_out_norm": "post_feedforward_layernorm.weight",
}
"""The name that Hugging Face gives to every param of a layer."""


def weight_names(config: Config) -> dict[str, str]:
    """The Hugging Face name of every param of Gemma(config)."""
    return llama.weight_names(config) | names_in_layers(config.layers, "model.layers", LAYER_NAMES)
