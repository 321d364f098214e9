"""A ChatGLM2 layer of torch: what benchmarks compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from graphdsl.models.torch_layer import CachedLayer


class LayerConfig(Protocol):
    """The sizes of a layer: those of examples/chatglm2_layer.py and of graphdsl.models.chatglm."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def eps(self) -> float: ...
    @property
    def theta(self) -> float: ...


class TorchChatGLM2Layer(CachedLayer):
    """One decoder layer with the merged weights that the files have. See torch_layer for its
    use."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config.kv_heads, config.head_dim)
        self.config = config
        self.weights: Mapping[str, Tensor] = {}
        exponents = torch.arange(0, config.head_dim // 2, 2).float() / (config.head_dim // 2)
        self.frequencies: Tensor
        self.register_buffer("frequencies", 1.0 / config.theta ** exponents, persistent=False)

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of ChatGLM2Layer's params (attn_norm, wqkv, ...)."""
        self.weights = params

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        c, w = self.config, self.weights
        batch, tokens, _ = x.shape
        h = F.rms_norm(x, (c.hidden,), w["attn_norm"], c.eps)
        merged = F.linear(h, w["wqkv"], w["bqkv"]).view(batch, tokens, -1, c.head_dim)
        q, k, v = torch.split(merged.transpose(1, 2), [c.heads, c.kv_heads, c.kv_heads], dim=1)
        angles = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        attended = self.attended(half_turned(q, cos, sin), half_turned(k, cos, sin), v)
        x = x + F.linear(attended, w["wo"])
        h = F.rms_norm(x, (c.hidden,), w["ffn_norm"], c.eps)
        gate, up = F.linear(h, w["w_gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, w["w_down"])


def half_turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[b, h, t, d] with the pairs (2i, 2i + 1) of its first half turned by the angles
    [b, 1, t, d / 4]."""
    turned, kept = x.chunk(2, dim=-1)
    pairs = turned.reshape(*turned.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    both = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((both.flatten(-2), kept), dim=-1)
