"""One layer of BERT's encoder, written as plain maths: every token sees all others that are no
padding, and norms stand behind what they normalise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl import Layer, Param, Value
from graphdsl.ops import attention, gelu, layer_norm, linear, merge_heads, split_heads

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config:
    """The sizes of BERT base; change one with `--set heads=8`."""

    hidden: int = 768
    heads: int = 12
    ffn: int = 3072
    eps: float = 1e-12


BERT_BASE = Config()


class BertLayer(Layer):
    """Attention, then a feed-forward network; each is added to its input and the sum normalised."""

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

        h = linear(gelu(linear(x, self.w_up, self.b_up)), self.w_down, self.b_down)
        return layer_norm(h + x, self.ffn_norm, self.ffn_norm_bias, eps=c.eps)


def peer(config: Config) -> tuple[torch.nn.Module, ...]:
    """The same layer in plain torch and in transformers: `graphdsl bench --vs eager,compile`
    compares with the faster."""
    from graphdsl.models.bert_torch import bert_peers

    return bert_peers(config)
