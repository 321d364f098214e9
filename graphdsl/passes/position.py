"""Rules for positions: rope and the KV cache."""

from __future__ import annotations

from typing import Any

from graphdsl.ir import Value
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append, rope_append
from graphdsl.ops.position import rope
from graphdsl.passes.rules import FusionRule, Rule


class RopeAppend(FusionRule):
    """rope on q and k and the appends of k and v that one attention reads become one operation."""

    shapes = ("q[b, t, 4, 8], k[b, t, 2, 8], v[b, t, 2, e], cos[b, t, 3]:f32, sin[b, t, 3]:f32,"
              " positions[b, t]:i32, k_cache[b, 9, 2, 8], v_cache[b, 9, 2, e]")
    attributes = {"interleaved": (False, True), "causal": (True,),  # noqa: RUF012
                  "scale": (None, 0.3), "window": (0, 3), "softcap": (0.0,)}

    @staticmethod
    def before(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
               k_cache: Value, v_cache: Value, *, interleaved: bool, causal: bool,
               scale: float | None, window: int, softcap: float) -> Any:
        new_k = kv_append(k_cache, rope(k, cos, sin, interleaved=interleaved), positions)
        new_v = kv_append(v_cache, v, positions)
        return attention(rope(q, cos, sin, interleaved=interleaved), new_k, new_v, positions,
                         causal=causal, scale=scale, window=window, softcap=softcap), new_k, new_v

    @staticmethod
    def after(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
              k_cache: Value, v_cache: Value, *, interleaved: bool, **attrs: Any) -> Any:
        turned, new_k, new_v = rope_append(q, k, v, cos, sin, positions, k_cache, v_cache,
                                           interleaved=interleaved)
        return attention(turned, new_k, new_v, positions, **attrs), new_k, new_v


class RopeAppendMasked(FusionRule):
    """The same where the attention has a mask."""

    shapes = RopeAppend.shapes + ", mask[t, 9]:bool"
    attributes = RopeAppend.attributes

    @staticmethod
    def before(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
               k_cache: Value, v_cache: Value, mask: Value, *, interleaved: bool, causal: bool,
               scale: float | None, window: int, softcap: float) -> Any:
        new_k = kv_append(k_cache, rope(k, cos, sin, interleaved=interleaved), positions)
        new_v = kv_append(v_cache, v, positions)
        turned = rope(q, cos, sin, interleaved=interleaved)
        return attention(turned, new_k, new_v, positions, mask, causal=causal, scale=scale,
                         window=window, softcap=softcap), new_k, new_v

    @staticmethod
    def after(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
              k_cache: Value, v_cache: Value, mask: Value, *, interleaved: bool,
              **attrs: Any) -> Any:
        turned, new_k, new_v = rope_append(q, k, v, cos, sin, positions, k_cache, v_cache,
                                           interleaved=interleaved)
        return attention(turned, new_k, new_v, positions, mask, **attrs), new_k, new_v


RULES: tuple[Rule, ...] = (RopeAppend(), RopeAppendMasked())
