"""The Llama architecture in the DSL, its config and the names of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param
from graphdsl.models.decoder import Decoder, names_in_layers
from graphdsl.ops import attention, linear, rms_norm, rope, rope_angles, silu
from graphdsl.ops.position import Scaling
from graphdsl.ops.shape import merge_heads, split_heads


@dataclass(frozen=True)
class Config:
    """The sizes and constants of a Llama model.

    `scaling` stretches the rotary frequencies (see rope_frequencies), `window` is the number of
    tokens that a token sees (0: all, Mistral 7B: 4096); for the last three see DecoderConfig.
    """

    vocab: int = 32000
    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    ffn: int = 11008
    eps: float = 1e-5
    theta: float = 10000.0
    scaling: Scaling = ()
    window: int = 0
    tied: bool = False
    embeddings: bool = False
    hidden_states: bool = False

    @property
    def rotary(self) -> int:
        """The angles by which a head is turned: a size of a layer's signature."""
        return self.head_dim // 2


LLAMA_7B = Config()


class LlamaLayer(Layer):
    """One decoder layer; the rotary angles, the same for all layers, are given."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32,"
                 " cos[batch, tokens, rotary]:f32, sin[batch, tokens, rotary]:f32"
                 " -> y[batch, tokens, hidden]")

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

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        c = self.config
        h = rms_norm(x, self.attn_norm, eps=c.eps)
        q = split_heads(linear(h, self.wq), c.heads)
        k = split_heads(linear(h, self.wk), c.kv_heads)
        v = split_heads(linear(h, self.wv), c.kv_heads)
        kv = self.kv.append(rope(k, cos, sin), v, positions)
        attended = attention(rope(q, cos, sin), kv.k, kv.v, positions, window=c.window)
        x = x + linear(merge_heads(attended), self.wo)

        h = rms_norm(x, self.ffn_norm, eps=c.eps)
        y: Value = x + linear(silu(linear(h, self.w_gate)) * linear(h, self.w_up), self.w_down)
        return y


class Llama(Decoder):
    """The layers, an RMS norm and a head: see Decoder."""

    def __init__(self, config: Config = LLAMA_7B) -> None:
        super().__init__(config)
        self.layers = [LlamaLayer(config) for _ in range(config.layers)]
        self.norm = Param(config.hidden)
        self.head = self.new_head()

    def shared(self, positions: Value) -> tuple[Value, Value]:
        c = self.config
        angles: tuple[Value, Value] = rope_angles(positions, rotary_dim=c.head_dim, theta=c.theta,
                                                  scaling=c.scaling)
        return angles

    def last_norm(self, x: Value) -> Value:
        y: Value = rms_norm(x, self.norm, eps=self.config.eps)
        return y


LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "wo": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
}
"""The name that Hugging Face gives to every param of a layer."""


def weight_names(config: Config) -> dict[str, str]:
    """The Hugging Face name of every param of Llama(config)."""
    names = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight"}
    if not config.tied:
        names["head"] = "lm_head.weight"
    return names | names_in_layers(config.layers, "model.layers", LAYER_NAMES)
