"""The ChatGLM2 architecture in the DSL, its config and the names of its weights: ChatGLM2,
ChatGLM3 and GLM-4 in the files of their own code.

Source: Team GLM, ChatGLM: A Family of Large Language Models from GLM-130B to GLM-4 All Tools, arXiv
2406.12793; Shazeer, Fast Transformer Decoding (multi-query attention), arXiv 1911.02150.
"""

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
    """The sizes and constants of a ChatGLM2 model. Rope turns the first half of a head, pair by
    pair, so head_dim is a multiple of 4. The last three are those of every Decoder."""

    vocab: int = 65024
    hidden: int = 4096
    layers: int = 28
    heads: int = 32
    kv_heads: int = 2
    head_dim: int = 128
    ffn: int = 13696
    eps: float = 1e-5
    theta: float = 10000.0
    scaling: Scaling = ()
    qkv_bias: bool = True
    tied: bool = False
    embeddings: bool = False
    hidden_states: bool = False

    @property
    def rotary(self) -> int:
        """The angles by which a head is turned: a size of a layer's signature."""
        return self.head_dim // 4


CHATGLM2_6B = Config()


class ChatGLM2Layer(Layer):
    """One decoder layer; the rotary angles, the same for all layers, are given. q, k and v come
    from one weight, gate and up from another, as in the files."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32,"
                 " cos[batch, tokens, rotary]:f32, sin[batch, tokens, rotary]:f32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: Config = CHATGLM2_6B) -> None:
        c = self.config = config
        merged = (c.heads + 2 * c.kv_heads) * c.head_dim
        self.attn_norm = Param(c.hidden)
        self.wqkv = Param(merged, c.hidden)
        self.bqkv = Param(merged) if c.qkv_bias else None
        self.wo = Param(c.hidden, c.heads * c.head_dim)
        self.ffn_norm = Param(c.hidden)
        self.w_gate_up, self.w_down = Param(2 * c.ffn, c.hidden), Param(c.hidden, c.ffn)
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        c = self.config
        h = rms_norm(x, self.attn_norm, eps=c.eps)
        heads = split_heads(linear(h, self.wqkv, self.bqkv), c.heads + 2 * c.kv_heads)
        q, k, v = split(heads, sizes=(c.heads, c.kv_heads, c.kv_heads), axis=-2)
        kv = self.kv.append(rope(k, cos, sin, interleaved=True), v, positions)
        attended = attention(rope(q, cos, sin, interleaved=True), kv.k, kv.v, positions)
        x = x + linear(merge_heads(attended), self.wo)

        h = rms_norm(x, self.ffn_norm, eps=c.eps)
        gate, up = split(linear(h, self.w_gate_up), sizes=(c.ffn, c.ffn))
        y: Value = x + linear(silu(gate) * up, self.w_down)
        return y


class ChatGLM2(Decoder):
    """The layers, an RMS norm and a head: see Decoder."""

    def __init__(self, config: Config = CHATGLM2_6B) -> None:
        super().__init__(config)
        self.layers = [ChatGLM2Layer(config) for _ in range(config.layers)]
        self.norm = Param(config.hidden)
        self.head = self.new_head()

    def shared(self, positions: Value) -> tuple[Value, ...]:
        c = self.config
        return tuple(rope_angles(positions, rotary_dim=c.head_dim // 2, theta=c.theta,
                                 scaling=c.scaling))

    def last_norm(self, x: Value) -> Value:
        y: Value = rms_norm(x, self.norm, eps=self.config.eps)
        return y


LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
    "wqkv": "self_attention.query_key_value.weight", "wo": "self_attention.dense.weight",
    "w_gate_up": "mlp.dense_h_to_4h.weight", "w_down": "mlp.dense_4h_to_h.weight"}
BIAS_NAMES = {"bqkv": "self_attention.query_key_value.bias"}


def weight_names(config: Config) -> dict[str, str]:
    """The name in the files of every param of ChatGLM2(config)."""
    names = {"embed": "transformer.embedding.word_embeddings.weight",
             "norm": "transformer.encoder.final_layernorm.weight"}
    if not config.tied:
        names["head"] = "transformer.output_layer.weight"
    in_layer = LAYER_NAMES | (BIAS_NAMES if config.qkv_bias else {})
    return names | names_in_layers(config.layers, "transformer.encoder.layers", in_layer)
