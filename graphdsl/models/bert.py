"""The BERT encoder in the DSL, its config and the names of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.ir import Value
from graphdsl.layer import Layer, Model, Param
from graphdsl.models.activations import activation
from graphdsl.models.decoder import names_in_layers
from graphdsl.ops import attention, embedding, layer_norm, linear, merge_heads, split_heads


@dataclass(frozen=True)
class Config:
    """The sizes and constants of a BERT encoder; `hidden` is shared evenly by the heads."""

    vocab: int = 30522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    eps: float = 1e-12
    activation: str = "gelu"
    max_positions: int = 512
    token_types: int = 2


BERT_BASE = Config()


class BertLayer(Layer):
    """Attention of every token to all that are no padding, then a feed-forward network; each is
    added to its input and the sum normalised.

    mask[batch, tokens]: True for tokens that are seen; the rows of others mean nothing.
    Source: Devlin et al., BERT, arXiv 1810.04805.
    """

    signature = "x[batch, tokens, hidden], mask[batch, tokens]:bool -> y[batch, tokens, hidden]"

    def __init__(self, config: Config = BERT_BASE) -> None:
        c = self.config = config
        self.wq, self.bq = Param(c.hidden, c.hidden), Param(c.hidden)
        self.wk, self.bk = Param(c.hidden, c.hidden), Param(c.hidden)
        self.wv, self.bv = Param(c.hidden, c.hidden), Param(c.hidden)
        self.wo, self.bo = Param(c.hidden, c.hidden), Param(c.hidden)
        self.attn_norm, self.attn_norm_bias = Param(c.hidden), Param(c.hidden)
        self.w_up, self.b_up = Param(c.ffn, c.hidden), Param(c.ffn)
        self.w_down, self.b_down = Param(c.hidden, c.ffn), Param(c.hidden)
        self.ffn_norm, self.ffn_norm_bias = Param(c.hidden), Param(c.hidden)

    def forward(self, x: Value, mask: Value) -> Value:
        c = self.config
        q = split_heads(linear(x, self.wq, self.bq), c.heads)
        k = split_heads(linear(x, self.wk, self.bk), c.heads)
        v = split_heads(linear(x, self.wv, self.bv), c.heads)
        attended = attention(q, k, v, mask=mask[:, None, None], causal=False)
        h = linear(merge_heads(attended), self.wo, self.bo)
        x = layer_norm(h + x, self.attn_norm, self.attn_norm_bias, eps=c.eps)

        h = activation(c.activation)(linear(x, self.w_up, self.b_up))
        h = linear(h, self.w_down, self.b_down)
        y: Value = layer_norm(h + x, self.ffn_norm, self.ffn_norm_bias, eps=c.eps)
        return y


class Bert(Model):
    """Token ids to the last hidden states.

    ids, types, places [batch, tokens]:i32 number the rows of three tables (types: which of two
    texts; places: 0, 1, 2 ...), mask[batch, tokens]:bool is False for padding -> hidden states
    y[batch, tokens, hidden].
    """

    signature = ("ids[batch, tokens]:i32, types[batch, tokens]:i32, places[batch, tokens]:i32,"
                 " mask[batch, tokens]:bool -> y[batch, tokens, hidden]")

    def __init__(self, config: Config = BERT_BASE) -> None:
        c = self.config = config
        self.embed = Param(c.vocab, c.hidden)
        self.embed_types = Param(c.token_types, c.hidden)
        self.embed_places = Param(c.max_positions, c.hidden)
        self.norm, self.norm_bias = Param(c.hidden), Param(c.hidden)
        self.layers = [BertLayer(c) for _ in range(c.layers)]

    def forward(self, ids: Value, types: Value, places: Value, mask: Value) -> Value:
        x: Value = embedding(ids, self.embed) + embedding(types, self.embed_types)
        x = x + embedding(places, self.embed_places)
        x = layer_norm(x, self.norm, self.norm_bias, eps=self.config.eps)
        for layer in self.layers:
            x = layer(x, mask)
        return x


LINEARS = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
           "o": "attention.output.dense", "_up": "intermediate.dense", "_down": "output.dense"}
NORMS = {"attn_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}

LAYER_NAMES = {**{f"w{ours}": f"{theirs}.weight" for ours, theirs in LINEARS.items()},
               **{f"b{ours}": f"{theirs}.bias" for ours, theirs in LINEARS.items()},
               **{ours: f"{theirs}.weight" for ours, theirs in NORMS.items()},
               **{f"{ours}_bias": f"{theirs}.bias" for ours, theirs in NORMS.items()}}
"""The name that Hugging Face gives to every param of a layer."""


def weight_names(config: Config) -> dict[str, str | tuple[str, ...]]:
    """The name of every param of Bert(config) in transformers' BertModel."""
    tables = {"embed": "word", "embed_types": "token_type", "embed_places": "position"}
    return {**{ours: f"embeddings.{theirs}_embeddings.weight" for ours, theirs in tables.items()},
            "norm": "embeddings.LayerNorm.weight", "norm_bias": "embeddings.LayerNorm.bias",
            **names_in_layers(config.layers, "encoder.layer", LAYER_NAMES)}
