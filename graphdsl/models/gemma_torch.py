"""Gemma 3 layers of torch: what benchmarks compare with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from graphdsl.models.gemma import LAYER_NAMES
from graphdsl.models.torch_layer import CachedLayer, TransformersLayer


class LayerConfig(Protocol):
    """The sizes of examples/gemma_layer.py."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def eps(self) -> float: ...
    @property
    def theta(self) -> float: ...
    @property
    def window(self) -> int: ...


def seen(past: int, tokens: int, window: int) -> Tensor:
    """Which keys each of `tokens` sees behind `past` others: bool [tokens, past + tokens]."""
    at = torch.arange(past, past + tokens)[:, None]
    key = torch.arange(past + tokens)
    return (key <= at) & (key > at - window) if window else key <= at


class TorchGemmaLayer(CachedLayer):
    """One decoder layer with merged QKV and gate-up weights and norms that have 1 added to their
    weights. See torch_layer for its use."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config.kv_heads, config.head_dim)
        self.config = config
        self.weights: dict[str, Tensor] = {}
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.frequencies = 1.0 / config.theta ** exponents

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of GemmaLayer's params (attn_norm, wq, ...)."""
        self.weights = {n: w.float() + 1 if n.endswith("norm") else w for n, w in params.items()}
        self.weights["qkv"] = torch.cat([params[n] for n in ("wq", "wk", "wv")])
        self.weights["gate_up"] = torch.cat([params[n] for n in ("w_gate", "w_up")])

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        c, w = self.config, self.weights
        b, t, _ = x.shape
        merged = F.linear(self._norm(x, "attn_norm"), w["qkv"]).view(b, t, -1, c.head_dim)
        q, k, v = torch.split(merged, [c.heads, c.kv_heads, c.kv_heads], dim=2)
        angles = positions[:, :, None, None].float() * self.frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q = _rotated(self._norm(q, "q_norm"), cos, sin)
        k = _rotated(self._norm(k, "k_norm"), cos, sin)
        h = self.attended(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + self._norm(F.linear(h, w["wo"]), "attn_out_norm")
        gate, up = F.linear(self._norm(x, "ffn_norm"), w["gate_up"]).chunk(2, dim=-1)
        h = F.linear(F.gelu(gate, approximate="tanh") * up, w["w_down"])
        return x + self._norm(h, "ffn_out_norm")

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As CachedLayer, but for the last `window` tokens alone."""
        window, past, tokens = self.config.window, self.past, q.shape[2]
        if not window or past + tokens <= window:
            return super().attended(q, k, v)
        end, first = past + tokens, max(0, past + 1 - window)
        self.keys[:, :, past:end], self.values[:, :, past:end] = k, v
        mask = seen(past, tokens, window)[:, first:]
        h = F.scaled_dot_product_attention(q, self.keys[:, :, first:end],
                                           self.values[:, :, first:end], mask, enable_gqa=True)
        return h.transpose(1, 2).reshape(q.shape[0], tokens, -1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weights[name], self.config.eps).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[b, t, h, d] with its halves turned by the angles [b, t, 1, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class TransformersGemmaLayer(TransformersLayer):
    """transformers' own decoder layer behind the same calls."""

    def __init__(self, config: LayerConfig) -> None:
        from transformers import Gemma3TextConfig
        from transformers.models.gemma3.modeling_gemma3 import (
            Gemma3DecoderLayer,
            Gemma3RotaryEmbedding,
        )

        c = config
        self.kind = "sliding_attention" if c.window else "full_attention"
        made = Gemma3TextConfig(
            hidden_size=c.hidden, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
            head_dim=c.head_dim, query_pre_attn_scalar=c.head_dim, intermediate_size=c.ffn,
            rms_norm_eps=c.eps, num_hidden_layers=1, layer_types=[self.kind],
            sliding_window=c.window or None, attn_implementation="sdpa",
            rope_parameters={self.kind: {"rope_type": "default", "rope_theta": c.theta}})
        super().__init__(Gemma3DecoderLayer(made, 0).eval())
        self.rotary: Any = Gemma3RotaryEmbedding(made)
        self.window = c.window

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of GemmaLayer's params (attn_norm, wq, ...)."""
        self.take({theirs: params[ours] for ours, theirs in LAYER_NAMES.items()})

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        cache, mask = self.past_and_mask(x.shape[1])
        end = x.shape[1] + (0 if self.keys is None else self.keys.shape[2])
        if self.window and end > self.window:
            mask = seen(end - x.shape[1], x.shape[1], self.window)[None, None]
        angles = self.rotary(x, positions.long(), self.kind)
        result: Tensor = self.layer(x, position_embeddings=angles, attention_mask=mask,
                                    past_key_values=cache)
        return result


def gemma_peers(config: LayerConfig) -> tuple[torch.nn.Module, ...]:
    """The layers of torch that a built Gemma 3 layer is measured against: benchmarks take the
    faster. transformers' own is among them where it is installed."""
    own = TorchGemmaLayer(config)
    if find_spec("transformers") is None:
        return (own,)
    return own, TransformersGemmaLayer(config)
