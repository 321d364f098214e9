"""Llama layers of torch: what benchmarks compare with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from graphdsl.models.llama import LAYER_NAMES


class LayerConfig(Protocol):
    """The sizes of a layer: those of examples/llama_layer.py and of graphdsl.models.llama."""

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


class TorchLlamaLayer(torch.nn.Module):
    """One decoder layer with merged QKV and gate-up weights, a preallocated cache and SDPA.

    Use: `load` the weights, `reset` the cache, `set_past` what it holds, then call with
    x[batch, tokens, hidden] and positions[batch, tokens] (i32), which go on from the past. The past
    does not grow by a call, so that a benchmark can repeat one step; to go on, add the tokens to
    `past`. All sequences of a batch have the same length.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        self.past = 0
        self.frequencies: Tensor
        self.keys = self.values = torch.empty(0)
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("frequencies", 1.0 / config.theta ** exponents, persistent=False)

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of LlamaLayer's params (attn_norm, wq, ...)."""
        def weight(*names: str) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.cat([params[n] for n in names]), requires_grad=False)

        self.attn_norm, self.ffn_norm = weight("attn_norm"), weight("ffn_norm")
        self.qkv, self.wo = weight("wq", "wk", "wv"), weight("wo")
        self.gate_up, self.w_down = weight("w_gate", "w_up"), weight("w_down")

    def reset(self, batch: int, slots: int, dtype: torch.dtype) -> None:
        """An empty cache for `batch` sequences of at most `slots` tokens."""
        shape = (batch, self.config.kv_heads, slots, self.config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.past = 0

    def set_past(self, k: Tensor, v: Tensor) -> None:
        """Takes k and v [batch, past, kv_heads, head_dim] (k rotated) as what came before."""
        self.past = k.shape[1]
        self.keys[:, :, :self.past] = k.transpose(1, 2)
        self.values[:, :, :self.past] = v.transpose(1, 2)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        c = self.config
        h = F.rms_norm(x, (c.hidden,), self.attn_norm, c.eps)
        x = x + F.linear(self._attention(F.linear(h, self.qkv), positions), self.wo)
        h = F.rms_norm(x, (c.hidden,), self.ffn_norm, c.eps)
        gate, up = F.linear(h, self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.w_down)

    def _attention(self, qkv: Tensor, positions: Tensor) -> Tensor:
        """qkv[batch, tokens, (heads + 2 kv_heads) * head_dim] to [batch, tokens, heads * head_dim];
        k and v go to the cache."""
        c = self.config
        b, t, _ = qkv.shape
        end = self.past + t
        merged = qkv.view(b, t, -1, c.head_dim).transpose(1, 2)
        q, k, v = torch.split(merged, [c.heads, c.kv_heads, c.kv_heads], dim=1)
        angles = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)
        self.keys[:, :, self.past:end] = _rotated(k, cos, sin)
        self.values[:, :, self.past:end] = v
        mask = None
        if self.past and t > 1:
            mask = torch.ones(t, end, dtype=torch.bool).tril(self.past)
        attended = F.scaled_dot_product_attention(
            _rotated(q, cos, sin), self.keys[:, :, :end], self.values[:, :, :end], mask,
            is_causal=t > 1 and not self.past, enable_gqa=c.heads != c.kv_heads)
        return attended.transpose(1, 2).reshape(b, t, -1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[b, h, t, d] with its halves turned by the angles [b, 1, t, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class TransformersLlamaLayer(torch.nn.Module):
    """transformers' own decoder layer behind the same calls as TorchLlamaLayer; its cache is a
    DynamicCache that holds the past anew at every call."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        c = config
        made = LlamaConfig(
            hidden_size=c.hidden, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
            head_dim=c.head_dim, intermediate_size=c.ffn, rms_norm_eps=c.eps,
            num_hidden_layers=1, rope_parameters={"rope_type": "default", "rope_theta": c.theta},
            attn_implementation="sdpa")
        self.layer: Any = LlamaDecoderLayer(made, 0)
        self.rotary: Any = LlamaRotaryEmbedding(made)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of LlamaLayer's params (attn_norm, wq, ...)."""
        weights = {theirs: params[ours] for ours, theirs in LAYER_NAMES.items()}
        self.layer.load_state_dict(weights, assign=True)
        self.requires_grad_(False)

    def reset(self, batch: int, slots: int, dtype: torch.dtype) -> None:
        """Forgets the past; this cache has no capacity to set."""
        self.keys = self.values = None

    def set_past(self, k: Tensor, v: Tensor) -> None:
        """Takes k and v [batch, past, kv_heads, head_dim] (k rotated) as what came before."""
        if k.shape[1]:
            self.keys = k.transpose(1, 2).contiguous()
            self.values = v.transpose(1, 2).contiguous()

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        past, tokens, mask = 0, x.shape[1], None
        if self.keys is not None and self.values is not None:
            past = self.keys.shape[2]
            cache.layers.append(cache.layer_class_to_replicate())
            cache.layers[0].lazy_initialization(self.keys, self.values)
            cache.layers[0].keys, cache.layers[0].values = self.keys, self.values
        if past and tokens > 1:
            mask = torch.ones(tokens, past + tokens, dtype=torch.bool).tril(past)[None, None]
        angles = self.rotary(x, positions.long())
        result: Tensor = self.layer(x, attention_mask=mask, position_embeddings=angles,
                                    past_key_values=cache)
        return result


def llama_peers(config: LayerConfig) -> tuple[torch.nn.Module, ...]:
    """The layers of torch that a built Llama layer is measured against: benchmarks take the
    faster. transformers' own is among them where it is installed."""
    own = TorchLlamaLayer(config)
    if find_spec("transformers") is None:
        return (own,)
    return own, TransformersLlamaLayer(config)
