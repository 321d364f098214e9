"""BERT layers of torch: what benchmarks compare with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from graphdsl.models.bert import LAYER_NAMES


class LayerConfig(Protocol):
    """The sizes of a layer: those of examples/bert_layer.py and of graphdsl.models.bert."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def eps(self) -> float: ...


class TorchBertLayer(torch.nn.Module):
    """One encoder layer with merged QKV weights, SDPA and the exact gelu: `load` the weights, then
    call with x[batch, tokens, hidden] and mask[batch, tokens]:bool (True: seen)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        self.weights: dict[str, Tensor] = {}

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of BertLayer's params (wq, bq, ...)."""
        self.weights = {**params, "w_qkv": torch.cat([params[n] for n in ("wq", "wk", "wv")]),
                        "b_qkv": torch.cat([params[n] for n in ("bq", "bk", "bv")])}

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x[batch, tokens, hidden], mask[batch, tokens]:bool -> y[batch, tokens, hidden]."""
        c, w = self.config, self.weights
        b, t, _ = x.shape
        merged = F.linear(x, w["w_qkv"], w["b_qkv"]).view(b, t, 3, c.heads, -1)
        q, k, v = merged.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        h = F.linear(h.transpose(1, 2).reshape(b, t, -1), w["wo"], w["bo"])
        x = F.layer_norm(h + x, (c.hidden,), w["attn_norm"], w["attn_norm_bias"], c.eps)
        h = F.linear(F.gelu(F.linear(x, w["w_up"], w["b_up"])), w["w_down"], w["b_down"])
        return F.layer_norm(h + x, (c.hidden,), w["ffn_norm"], w["ffn_norm_bias"], c.eps)


class TransformersBertLayer(torch.nn.Module):
    """transformers' own encoder layer behind the same calls as TorchBertLayer."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertLayer

        made = BertConfig(hidden_size=config.hidden, num_attention_heads=config.heads,
                          intermediate_size=config.ffn, layer_norm_eps=config.eps,
                          attn_implementation="sdpa")
        self.layer: Any = BertLayer(made).eval()

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of BertLayer's params (wq, bq, ...)."""
        weights = {theirs: params[ours] for ours, theirs in LAYER_NAMES.items()}
        self.layer.load_state_dict(weights, assign=True)
        self.requires_grad_(False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x[batch, tokens, hidden], mask[batch, tokens]:bool -> y[batch, tokens, hidden]."""
        wide = mask[:, None, None].expand(-1, -1, x.shape[1], -1)
        result: Tensor = self.layer(x, wide)
        return result


def bert_peers(config: LayerConfig) -> tuple[torch.nn.Module, ...]:
    """The layers of torch that a built BERT layer is measured against: benchmarks take the faster.
    transformers' own is among them where it is installed."""
    own = TorchBertLayer(config)
    if find_spec("transformers") is None:
        return (own,)
    return own, TransformersBertLayer(config)
