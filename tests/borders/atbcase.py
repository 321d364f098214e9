"""The calls of ATB's torch example on a small layer, and transformers' own layer beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from graphdsl.models import llama

SIZES = llama.Config(hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, eps=1e-6)
BATCH, PROMPT, STEPS, MOST = 2, 7, 5, 64


@dataclass
class Theirs:
    """transformers' layer with random weights, and a cache that grows."""

    layer: LlamaDecoderLayer
    cache: DynamicCache = field(default_factory=DynamicCache)

    @staticmethod
    def drawn(dtype: torch.dtype = torch.float32) -> Theirs:
        """With weights that `dtype` has, computed in f32."""
        torch.manual_seed(3)
        config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
                             head_dim=16, intermediate_size=96, attn_implementation="sdpa")
        layer = LlamaDecoderLayer(config, 0).eval().requires_grad_(False)
        for weight in layer.parameters():
            weight.copy_((torch.randn_like(weight) * 0.1 + (weight.ndim == 1)).to(dtype))
        return Theirs(layer)

    @property
    def weights(self) -> list[Tensor]:
        named = dict(self.layer.named_parameters())
        return [named[name] for name in llama.LAYER_NAMES.values()]

    @property
    def tables(self) -> list[Tensor]:
        """cos and sin [max_positions, head_dim]."""
        rotary = LlamaRotaryEmbedding(self.layer.self_attn.config)
        cos, sin = rotary(torch.zeros(1), torch.arange(MOST)[None])
        return [cos[0], sin[0]]

    def step(self, x: Tensor, at: Tensor, mask: Tensor | None) -> list[Tensor]:
        angles = tuple(table[at] for table in self.tables)
        y = self.layer(x, attention_mask=mask, position_ids=at, past_key_values=self.cache,
                       position_embeddings=angles)
        rows = self.cache.layers[0]
        return [y, *(t.permute(2, 0, 1, 3) for t in (rows.keys, rows.values))]


def atb_mask(tokens: int, past: int, padding: tuple[int, ...] = (0, 0)) -> Tensor:
    """What each token sees: bool [batch, 1, tokens, keys]."""
    keys = torch.arange(past + tokens)
    causal = keys <= torch.arange(past, past + tokens)[:, None]
    return (causal & (keys >= torch.tensor(padding)[:, None, None]))[:, None]


def empty(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.empty(0, BATCH, SIZES.kv_heads, SIZES.head_dim, dtype=dtype) for _ in "kv"]


def drawn_step(number: int) -> Tensor:
    torch.manual_seed(number)
    return torch.randn(BATCH, 1 if number else PROMPT, SIZES.hidden)


Masks = Callable[[int, int], "Tensor | None"]
PADDED = (0, 3)


def bool_padded(tokens: int, past: int) -> Tensor:
    return atb_mask(tokens, past, PADDED)


def added(tokens: int, past: int) -> Tensor:
    mask = atb_mask(tokens, past, PADDED)
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def flat(tokens: int, past: int) -> Tensor:
    return atb_mask(tokens, past)[0, 0]


def no_mask(tokens: int, past: int) -> None:
    return None
