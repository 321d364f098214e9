"""Attention and caches as torch computes them, for the tests of the emulation."""

from __future__ import annotations

import torch
from opscase import BF16, F16, random, to_nz


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
              added: torch.Tensor | None = None) -> torch.Tensor:
    """One sequence: q [n, heads, dim], k and v [keys, kv heads, dim], added [n, keys] (or with
    heads before)."""
    group = q.shape[1] // k.shape[1]
    keys, values = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * scale
    if added is not None:
        scores = scores + added.double()
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def causal(rows: int, columns: int | None = None) -> torch.Tensor:
    """What hides all keys behind the row's own number, to be added in f16."""
    columns = rows if columns is None else columns
    return torch.full((rows, columns), -10000.0).triu(1)


def mask_of(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask in ATB's values: bf16 has 1 where f16 has -10000."""
    return (hidden < 0).to(BF16) if dtype is BF16 else hidden.to(F16)


def triangle(dtype: torch.dtype, fractal: bool = False) -> torch.Tensor:
    """The compressed causal mask."""
    mask = mask_of(causal(128), dtype)
    return to_nz(mask[None]) if fractal else mask


def fold(cache: torch.Tensor) -> torch.Tensor:
    """[..., slots, heads, dim] as NZ [..., heads * dim / 16, slots, 16]."""
    return to_nz(cache.flatten(-2))


def unfold(cache: torch.Tensor, heads: int) -> torch.Tensor:
    """NZ back to [..., slots, heads, dim]."""
    return cache.transpose(-3, -2).flatten(-2).unflatten(-1, (heads, -1))


def heads_of(rows: int, heads: int, dim: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return random(rows, heads, dim, dtype=dtype, seed=seed)


def three(rows: int, dtype: torch.dtype = F16, dim: int = 16) -> tuple[torch.Tensor, ...]:
    """q of 4 heads, k and v of 2."""
    return (heads_of(rows, 4, dim, dtype), heads_of(rows, 2, dim, dtype, 1),
            heads_of(rows, 2, dim, dtype, 2))
