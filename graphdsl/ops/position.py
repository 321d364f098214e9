"""Rotary position embedding (RoPE): frequencies, angles and the rotation.

Source: Su et al., RoFormer, arXiv 2104.09864. Tables are f32 [batch, tokens, rotary_dim / 2].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import TensorType, Value
from graphdsl.lazy import torch
from graphdsl.op import kernel, operation
from graphdsl.ops.math import as_dtype, cast, cos, sin
from graphdsl.ops.shape import concat, reshape

if TYPE_CHECKING:
    from torch import Tensor

Scaling = tuple[tuple[str, Any], ...]
"""How frequencies are stretched: (key, value) pairs, so that it can be an attribute."""

SCALING_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
}
"""What every supported rope_type needs. "factors" divides frequency i by factors[i]."""


def _frequencies(types: Sequence[TensorType], attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    rotary_dim, theta = attrs["rotary_dim"], attrs["theta"]
    if not isinstance(rotary_dim, int) or rotary_dim < 2 or rotary_dim % 2:
        raise GraphError(f"rotary_dim is {rotary_dim}, wanted an even number above 0")
    if not isinstance(theta, int | float) or theta <= 0:
        raise GraphError(f"theta is {theta}, wanted a number above 0")
    _check_scaling(attrs["scaling"], rotary_dim)
    return (TensorType((rotary_dim // 2,), "f32"),)


def _check_scaling(scaling: Any, rotary_dim: int) -> None:
    try:
        given: Mapping[str, Any] = dict(scaling)
    except (TypeError, ValueError):
        raise GraphError(f"scaling is {scaling!r}, wanted a tuple of (key, value) pairs",
                         hint='scaling=(("factor", 2.0), ("rope_type", "linear"))') from None
    kind = given.get("rope_type", "default")
    if kind not in SCALING_KEYS:
        raise GraphError(f"rope_type {kind!r} is not supported",
                         hint=f"supported: {', '.join(SCALING_KEYS)}")
    missing = [key for key in SCALING_KEYS[kind] if given.get(key) is None]
    if missing:
        raise GraphError(f"scaling of rope_type {kind!r} has no {missing[0]}",
                         hint=f"wanted: {', '.join(SCALING_KEYS[kind])}")
    if kind == "factors" and len(given["factors"]) != rotary_dim // 2:
        raise GraphError(f"{len(given['factors'])} rope factors for {rotary_dim // 2} frequencies")


@kernel(infer=_frequencies)
def rope_frequencies(*, rotary_dim: int, theta: float, scaling: Scaling = ()) -> Tensor:
    """The angle a position adds to every pair: f32 [rotary_dim / 2], theta^(-2i / rotary_dim) and
    stretched by `scaling`. The order of the f32 operations is that of transformers
    (modeling_rope_utils), so that the values are equal to the last bit.

    Raises GraphError for a rope_type other than default, linear, llama3 and factors: yarn, dynamic
    and longrope also scale the attention or depend on the length.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).to(torch.float32) / rotary_dim
    plain: Tensor = 1.0 / (theta ** exponents)
    given = dict(scaling)
    kind = given.get("rope_type", "default")
    if kind == "linear":
        return plain / float(given["factor"])
    if kind == "factors":
        return plain / torch.tensor(given["factors"], dtype=torch.float32)
    return _llama3(plain, given) if kind == "llama3" else plain


def _llama3(plain: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Long wavelengths divided by the factor, short ones kept, a ramp between (Llama 3.1)."""
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    trained = given["original_max_position_embeddings"]
    wavelength = 2 * math.pi / plain
    is_long, is_short = wavelength > trained / low, wavelength < trained / high
    stretched = torch.where(is_long, plain / given["factor"], plain)
    ramp = (trained / wavelength - low) / (high - low)
    between = (1 - ramp) * stretched / given["factor"] + ramp * stretched
    result: Tensor = torch.where(~is_short & ~is_long, between, stretched)
    return result


@operation("positions[b, t]:i32")
def rope_angles(positions: Value, *, rotary_dim: int, theta: float,
                scaling: Scaling = ()) -> tuple[Value, Value]:
    """cos and sin of position times frequency: positions[b, t]:i32 -> f32 [b, t, rotary_dim / 2]
    each. A position of -1 (padding) gives angles that nobody reads."""
    frequencies = rope_frequencies(rotary_dim=rotary_dim, theta=theta, scaling=scaling)
    angles = cast(positions, dtype="f32")[..., None] * frequencies
    return cos(angles), sin(angles)


@operation("x[b, t, h, d], cos[b, t, r]:f32, sin[b, t, r]:f32 -> y[b, t, h, d]")
def rope(x: Value, cos: Value, sin: Value, *, interleaved: bool = False) -> Value:
    """x with its first 2r channels turned pair by pair, in f32, rounded to x's dtype; the channels
    beyond pass through. Pair i is (i, i + r), or (2i, 2i + 1) when interleaved."""
    b, t, h, d = x.shape
    r = cos.shape[-1]
    if not isinstance(r, int) or not isinstance(d, int) or 2 * r > d:
        raise GraphError(f"cos is {cos.type}: it turns 2 * {r} channels, but x is {x.type}")
    c, s = cos[:, :, None], sin[:, :, None]
    if interleaved:
        pairs = reshape(x[..., :2 * r], shape=(b, t, h, r, 2))
        first, second = _turned(pairs[..., 0], pairs[..., 1], c, s)
        both = concat(first[..., None], second[..., None], axis=4)
        turned = [reshape(both, shape=(b, t, h, 2 * r))]
    else:
        turned = list(_turned(x[..., :r], x[..., r:2 * r], c, s))
    parts = [*turned, x[..., 2 * r:]] if 2 * r < d else turned
    y: Value = concat(*parts, axis=3) if len(parts) > 1 else parts[0]
    return y


def _turned(first: Value, second: Value, c: Value, s: Value) -> tuple[Value, Value]:
    """The two halves of all pairs, turned by the angles."""
    a, b = as_dtype(first, "f32"), as_dtype(second, "f32")
    return as_dtype(a * c - b * s, first.dtype), as_dtype(b * c + a * s, first.dtype)
