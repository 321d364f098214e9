"""The GPT-2 architecture in the DSL, its config and the names of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param
from graphdsl.models.decoder import Decoder, names_in_layers
from graphdsl.ops import (
    attention,
    embedding,
    gelu_tanh,
    layer_norm,
    linear,
    maximum,
    merge_heads,
    split,
    split_heads,
    transpose,
)


@dataclass(frozen=True)
class Config:
    """The sizes and constants of a GPT-2 model; heads divides hidden. The last three are those of
    every Decoder."""

    vocab: int = 50257
    max_positions: int = 1024
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    eps: float = 1e-5
    tied: bool = True
    embeddings: bool = False
    hidden_states: bool = False


GPT2_SMALL = Config()


class GPT2Layer(Layer):
    """One decoder layer, with biases and weights [in, out], as the files have them."""

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
        qkv = _conv1d(h, self.c_attn, self.c_attn_bias)
        q, k, v = (split_heads(part, c.heads) for part in split(qkv, sizes=(c.hidden,) * 3))
        kv = self.kv.append(k, v, positions)
        attended = merge_heads(attention(q, kv.k, kv.v, positions))
        x = x + _conv1d(attended, self.c_proj, self.c_proj_bias)

        h = layer_norm(x, self.ln_2, self.ln_2_bias, eps=c.eps)
        h = gelu_tanh(_conv1d(h, self.mlp_in, self.mlp_in_bias))
        y: Value = x + _conv1d(h, self.mlp_out, self.mlp_out_bias)
        return y


def _conv1d(x: Value, w: Value, bias: Value) -> Value:
    """x @ w + bias for a weight [in, out], which is turned round once, when it is loaded."""
    y: Value = linear(x, transpose(w, order=(1, 0)), bias)
    return y


class GPT2(Decoder):
    """Learned positions, the layers, a layer norm and a head: see Decoder."""

    def __init__(self, config: Config = GPT2_SMALL) -> None:
        super().__init__(config)
        self.position_table = Param(config.max_positions, config.hidden)
        self.layers = [GPT2Layer(config) for _ in range(config.layers)]
        self.norm, self.norm_bias = Param(config.hidden), Param(config.hidden)
        self.head = self.new_head()

    def entering(self, x: Value, positions: Value) -> Value:
        # Padding is at -1, where the table has no row; what is added there is never read.
        y: Value = x + embedding(maximum(positions, 0), self.position_table)
        return y

    def last_norm(self, x: Value) -> Value:
        y: Value = layer_norm(x, self.norm, self.norm_bias, eps=self.config.eps)
        return y


MODULES = {"ln_1": "ln_1", "c_attn": "attn.c_attn", "c_proj": "attn.c_proj", "ln_2": "ln_2",
           "mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj"}
"""The module of transformers' layer that each pair of weight and bias belongs to."""
LAYER_NAMES = ({ours: f"{theirs}.weight" for ours, theirs in MODULES.items()}
               | {f"{ours}_bias": f"{theirs}.bias" for ours, theirs in MODULES.items()})
"""The name that Hugging Face gives to every param of a layer."""


def weight_names(config: Config) -> dict[str, str]:
    """The Hugging Face name of every param of GPT2(config)."""
    names = {"embed": "transformer.wte.weight", "position_table": "transformer.wpe.weight",
             "norm": "transformer.ln_f.weight", "norm_bias": "transformer.ln_f.bias"}
    if not config.tied:
        names["head"] = "lm_head.weight"
    return names | names_in_layers(config.layers, "transformer.h", LAYER_NAMES)
