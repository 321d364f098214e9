"""What the decoder layers of torch share that benchmarks compare with: their caches.

Use of a layer: `load` the weights, `reset` the cache, `set_past` what it holds, then call with
x[batch, tokens, hidden] and positions[batch, tokens] (i32), which go on from the past. The past
does not grow by a call, so that a benchmark can repeat one step. All sequences of a batch have the
same length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class CachedLayer(torch.nn.Module):
    """A layer of plain torch: a preallocated cache and SDPA."""

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.past = 0
        self.keys = self.values = torch.empty(0)

    def reset(self, batch: int, slots: int, dtype: torch.dtype) -> None:
        """An empty cache for `batch` sequences of at most `slots` tokens."""
        shape = (batch, self.kv_heads, slots, self.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.past = 0

    def set_past(self, k: Tensor, v: Tensor) -> None:
        """Takes k and v [batch, past, kv_heads, head_dim] (k rotated) as what came before."""
        self.past = k.shape[1]
        self.keys[:, :, :self.past] = k.transpose(1, 2)
        self.values[:, :, :self.past] = v.transpose(1, 2)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q[batch, heads, tokens, head_dim], k and v with kv_heads, which go to the cache, to
        [batch, tokens, heads * head_dim]."""
        batch, heads, tokens, _ = q.shape
        end = self.past + tokens
        self.keys[:, :, self.past:end] = k
        self.values[:, :, self.past:end] = v
        mask = None
        if self.past and tokens > 1:
            mask = torch.ones(tokens, end, dtype=torch.bool).tril(self.past)
        result = F.scaled_dot_product_attention(
            q, self.keys[:, :, :end], self.values[:, :, :end], mask,
            is_causal=tokens > 1 and not self.past, enable_gqa=heads != self.kv_heads)
        return result.transpose(1, 2).reshape(batch, tokens, -1)


class TransformersLayer(torch.nn.Module):
    """A layer of transformers; its cache is a DynamicCache that holds the past anew at every
    call. Subclasses set `layer` and write `forward`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def reset(self, batch: int, slots: int, dtype: torch.dtype) -> None:
        """Forgets the past; this cache has no capacity to set."""
        self.keys = self.values = None

    def set_past(self, k: Tensor, v: Tensor) -> None:
        """Takes k and v [batch, past, kv_heads, head_dim] (k rotated) as what came before."""
        if k.shape[1]:
            self.keys = k.transpose(1, 2).contiguous()
            self.values = v.transpose(1, 2).contiguous()

    def take(self, weights: dict[str, Tensor]) -> None:
        """Takes all weights of the layer, under transformers' names."""
        self.layer.load_state_dict(weights, assign=True)
        self.requires_grad_(False)

    def past_and_mask(self, tokens: int) -> tuple[Any, Tensor | None]:
        """The past as a cache, and the mask that `tokens` more need."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        if self.keys is None or self.values is None:
            return cache, None
        past = self.keys.shape[2]
        cache.layers.append(cache.layer_class_to_replicate())
        cache.layers[0].lazy_initialization(self.keys, self.values)
        cache.layers[0].keys, cache.layers[0].values = self.keys, self.values
        if tokens == 1:
            return cache, None
        return cache, torch.ones(tokens, past + tokens, dtype=torch.bool).tril(past)[None, None]
