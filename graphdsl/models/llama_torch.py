"""Llama layers of torch: what benchmarks compare with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from graphdsl.models.llama import LAYER_NAMES
from graphdsl.models.torch_layer import CachedLayer, TransformersLayer


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


class TorchLlamaLayer(CachedLayer):
    """One decoder layer with merged QKV and gate-up weights. See torch_layer for its use."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config.kv_heads, config.head_dim)
        self.config = config
        self.frequencies: Tensor
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("frequencies", 1.0 / config.theta ** exponents, persistent=False)

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of LlamaLayer's params (attn_norm, wq, ...)."""
        def weight(*names: str) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.cat([params[n] for n in names]), requires_grad=False)

        self.attn_norm, self.ffn_norm = weight("attn_norm"), weight("ffn_norm")
        self.qkv, self.wo = weight("wq", "wk", "wv"), weight("wo")
        self.gate_up, self.w_down = weight("w_gate", "w_up"), weight("w_down")

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
        merged = qkv.view(b, t, -1, c.head_dim).transpose(1, 2)
        q, k, v = torch.split(merged, [c.heads, c.kv_heads, c.kv_heads], dim=1)
        angles = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)
        return self.attended(_rotated(q, cos, sin), _rotated(k, cos, sin), v)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[b, h, t, d] with its halves turned by the angles [b, 1, t, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class TransformersLlamaLayer(TransformersLayer):
    """transformers' own decoder layer behind the same calls as TorchLlamaLayer."""

    def __init__(self, config: LayerConfig) -> None:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        c = config
        made = LlamaConfig(
            hidden_size=c.hidden, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
            head_dim=c.head_dim, intermediate_size=c.ffn, rms_norm_eps=c.eps,
            num_hidden_layers=1, rope_parameters={"rope_type": "default", "rope_theta": c.theta},
            attn_implementation="sdpa")
        super().__init__(LlamaDecoderLayer(made, 0))
        self.rotary = LlamaRotaryEmbedding(made)

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of LlamaLayer's params (attn_norm, wq, ...)."""
        self.take({theirs: params[ours] for ours, theirs in LAYER_NAMES.items()})

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        cache, mask = self.past_and_mask(x.shape[1])
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
