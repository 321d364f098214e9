"""The GLM-4 architecture in the DSL, its config and the names of its weights (arXiv 2406.12793)."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param
from graphdsl.models.decoder import Decoder, names_in_layers
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
from graphdsl.ops.position import Scaling


@dataclass(frozen=True)
class Config:
    """Rope turns the first `rotary_dim` channels of a head, pair by pair; with `sandwich`, what
    attention and feed-forward add is normalised too, as in GLM-4-0414."""

    vocab: int = 151552
    hidden: int = 4096
    layers: int = 40
    heads: int = 32
    kv_heads: int = 2
    head_dim: int = 128
    rotary_dim: int = 64
    ffn: int = 13696
    eps: float = 1.5625e-7
    theta: float = 10000.0
    scaling: Scaling = ()
    qkv_bias: bool = True
    sandwich: bool = False
    tied: bool = False
    embeddings: bool = False
    hidden_states: bool = False

    @property
    def rotary(self) -> int:
        """The angles by which a head is turned: a size of a layer's signature."""
        return self.rotary_dim // 2


GLM4_9B = Config()


class GlmLayer(Layer):
    """One decoder layer; the rotary angles, the same for all layers, are given."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32,"
                 " cos[batch, tokens, rotary]:f32, sin[batch, tokens, rotary]:f32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: Config = GLM4_9B) -> None:
        c = self.config = config
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.attn_norm, self.ffn_norm = Param(c.hidden), Param(c.hidden)
        self.wq, self.wk, self.wv = Param(q, c.hidden), Param(kv, c.hidden), Param(kv, c.hidden)
        self.bq, self.bk, self.bv = (Param(n) if c.qkv_bias else None for n in (q, kv, kv))
        self.wo = Param(c.hidden, q)
        self.attn_out_norm = Param(c.hidden) if c.sandwich else None
        self.w_gate_up, self.w_down = Param(2 * c.ffn, c.hidden), Param(c.hidden, c.ffn)
        self.ffn_out_norm = Param(c.hidden) if c.sandwich else None
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        c = self.config
        h = rms_norm(x, self.attn_norm, eps=c.eps)
        q = split_heads(linear(h, self.wq, self.bq), c.heads)
        k = split_heads(linear(h, self.wk, self.bk), c.kv_heads)
        v = split_heads(linear(h, self.wv, self.bv), c.kv_heads)
        kv = self.kv.append(rope(k, cos, sin, interleaved=True), v, positions)
        attended = attention(rope(q, cos, sin, interleaved=True), kv.k, kv.v, positions)
        made = linear(merge_heads(attended), self.wo)
        x = x + (rms_norm(made, self.attn_out_norm, eps=c.eps) if c.sandwich else made)

        h = rms_norm(x, self.ffn_norm, eps=c.eps)
        gate, up = split(linear(h, self.w_gate_up), sizes=(c.ffn, c.ffn))
        made = linear(silu(gate) * up, self.w_down)
        y: Value = x + (rms_norm(made, self.ffn_out_norm, eps=c.eps) if c.sandwich else made)
        return y


class Glm(Decoder):
    """The layers, an RMS norm and a head: see Decoder."""

    def __init__(self, config: Config = GLM4_9B) -> None:
        super().__init__(config)
        self.layers = [GlmLayer(config) for _ in range(config.layers)]
        self.norm = Param(config.hidden)
        self.head = self.new_head()

    def shared(self, positions: Value) -> tuple[Value, ...]:
        c = self.config
        return tuple(rope_angles(positions, rotary_dim=c.rotary_dim, theta=c.theta,
                                 scaling=c.scaling))

    def last_norm(self, x: Value) -> Value:
        y: Value = rms_norm(x, self.norm, eps=self.config.eps)
        return y


LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
    "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight",
    "w_gate_up": "mlp.gate_up_proj.weight", "w_down": "mlp.down_proj.weight"}
BIASES = {f"b{part}": f"self_attn.{part}_proj.bias" for part in "qkv"}
SANDWICH = {"attn_out_norm": "post_self_attn_layernorm.weight",
            "ffn_out_norm": "post_mlp_layernorm.weight"}


def weight_names(config: Config) -> dict[str, str]:
    """The Hugging Face name of every param of Glm(config)."""
    c, names = config, {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight"}
    names |= {} if c.tied else {"head": "lm_head.weight"}
    inner = LAYER_NAMES | (BIASES if c.qkv_bias else {}) | (SANDWICH if c.sandwich else {})
    return names | names_in_layers(config.layers, "model.layers", inner)
