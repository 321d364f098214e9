"""Appending to a KV cache, [batch, slots, kv_heads, head_dim]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.ir import TensorType, Value
from graphdsl.op import kernel, operation
from graphdsl.ops.norm import rms_norm
from graphdsl.ops.position import rope

if TYPE_CHECKING:
    from torch import Tensor


def _same_cache(types: Sequence[TensorType], attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    return (types[0],)


@kernel("cache[b, s, g, d], x[b, t, g, d], positions[b, t]:i32, table?[b, p]:i32"
        " -> y[b, s, g, d]", infer=_same_cache, aliases=((0, 0),))
def kv_append(cache: Tensor, x: Tensor, positions: Tensor, table: Tensor | None = None) -> Tensor:
    """The cache with x[i, j] at slot positions[i, j], in the cache's memory and layout; a position
    of -1 (padding) appends nothing. The positions of one sequence differ and are below s; a cache
    that shifts takes them in order and without gaps. `table`, the block table of a paged cache,
    says where its rows lie and changes no number."""
    new = cache.clone()
    batch, token = (positions >= 0).nonzero(as_tuple=True)
    new[batch, positions[batch, token].long()] = x[batch, token]
    return new


def _plain(types: Sequence[TensorType], attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    return (TensorType(types[0].shape, types[0].dtype),)


@kernel("cache[b, s, g, d], table?[b, p]:i32 -> y[b, s, g, d]", infer=_plain)
def relayout(cache: Tensor, table: Tensor | None = None) -> Tensor:
    """A contiguous copy [batch, slots, kv_heads, head_dim] of a cache of any order, paged ones and
    int8 storage included, for whoever cannot read it where it lies."""
    return cache.clone()


@operation("q[b, t, h, d], k[b, t, g, d], v[b, t, g, e], cos[b, t, r]:f32, sin[b, t, r]:f32,"
           " positions[b, t]:i32, k_cache[b, s, g, d], v_cache[b, s, g, e], table?[b, p]:i32"
           " -> y[b, t, h, d], new_k[b, s, g, d], new_v[b, s, g, e]", aliases=((1, 6), (2, 7)))
def rope_append(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
                k_cache: Value, v_cache: Value, table: Value | None = None, *,
                interleaved: bool = False) -> tuple[Value, Value, Value]:
    """The rotated q, and the caches with the rotated k and with v appended in place."""
    new_k = kv_append(k_cache, rope(k, cos, sin, interleaved=interleaved), positions, table)
    new_v = kv_append(v_cache, v, positions, table)
    return rope(q, cos, sin, interleaved=interleaved), new_k, new_v


@operation("q[b, t, h, d], k[b, t, g, d], v[b, t, g, e], cos[b, t, r]:f32, sin[b, t, r]:f32,"
           " positions[b, t]:i32, k_cache[b, s, g, d], v_cache[b, s, g, e], q_weight[d]:W,"
           " k_weight[d]:W, table?[b, p]:i32"
           " -> y[b, t, h, d], new_k[b, s, g, d], new_v[b, s, g, e]", aliases=((1, 6), (2, 7)))
def norm_rope_append(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
                     k_cache: Value, v_cache: Value, q_weight: Value, k_weight: Value,
                     table: Value | None = None, *, eps: float, interleaved: bool = False,
                     ) -> tuple[Value, Value, Value]:
    """rope_append of q and k whose heads are normed first, as Qwen3 and Gemma 3 have them.
    Weights are of q's dtype, or f32. Raises GraphError for others."""
    normed_q, normed_k = rms_norm(q, q_weight, eps=eps), rms_norm(k, k_weight, eps=eps)
    y, new_k, new_v = rope_append(normed_q, normed_k, v, cos, sin, positions, k_cache, v_cache,
                                  table, interleaved=interleaved)
    return y, new_k, new_v
