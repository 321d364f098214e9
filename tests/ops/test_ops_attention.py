"""Rotary embedding, attention and the KV cache against torch and transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opcase import apply, draw, normal
from torch import Tensor
from transformers import GlmConfig, LlamaConfig
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama

from graphdsl import ops
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Layout, TensorType, Value

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 8192}


def inverse_frequencies(rope: dict[str, Any], dim: int) -> Tensor:
    """What transformers computes for a Llama with heads of this width."""
    config = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, head_dim=dim,
                         max_position_embeddings=131072, rope_parameters=rope)
    return modeling_llama.LlamaRotaryEmbedding(config).inv_freq


@pytest.mark.parametrize("dim", [2, 16, 64, 80, 128])
@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 3.0}, LLAMA3],
                         ids=["default", "linear", "llama3"])
def test_frequencies_are_those_of_transformers_to_the_last_bit(
        scaling: dict[str, Any], theta: float, dim: int) -> None:
    rope = {"rope_type": "default", **scaling, "rope_theta": theta}
    ours = apply(ops.rope_frequencies, rotary_dim=dim, theta=theta,
                 scaling=tuple(sorted(scaling.items())))
    assert torch.equal(ours, inverse_frequencies(rope, dim))


def test_frequencies_by_factors() -> None:
    plain = apply(ops.rope_frequencies, rotary_dim=4, theta=1e4)
    scaled = apply(ops.rope_frequencies, rotary_dim=4, theta=1e4,
                   scaling=(("factors", (2.0, 8.0)), ("rope_type", "factors")))
    assert torch.equal(scaled, plain / torch.tensor([2.0, 8.0]))


def angles(positions: Tensor, rotary: int) -> tuple[Tensor, Tensor]:
    cos, sin = apply(ops.rope_angles, positions, rotary_dim=rotary, theta=1e4)
    return cos, sin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_is_that_of_llama(dtype: torch.dtype, generator: torch.Generator) -> None:
    b, t, h, d = (draw(generator, 1, 3) for _ in range(4))
    x = normal(generator, b, t, h, 2 * d, dtype=dtype)
    positions = torch.randint(0, 5000, (b, t), generator=generator, dtype=torch.int32)
    cos, sin = angles(positions, 2 * d)
    wide = x.float().transpose(1, 2)
    full = [torch.cat((table, table), -1) for table in (cos, sin)]
    expected, _ = modeling_llama.apply_rotary_pos_emb(wide, wide, *full)
    ours = apply(ops.rope, x, cos, sin)
    torch.testing.assert_close(ours, expected.transpose(1, 2).to(dtype))


def test_angles_are_those_of_llama(generator: torch.Generator) -> None:
    config = LlamaConfig(hidden_size=128, num_attention_heads=2)
    positions = torch.randint(0, 5000, (2, 7), generator=generator, dtype=torch.int32)
    cos, sin = angles(positions, 64)
    expected = modeling_llama.LlamaRotaryEmbedding(config)(torch.ones(1), positions)
    torch.testing.assert_close(cos, expected[0][..., :32], rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, expected[1][..., :32], rtol=0, atol=1e-6)


def test_interleaved_partial_rope_is_that_of_glm(generator: torch.Generator) -> None:
    config = GlmConfig(hidden_size=64, num_attention_heads=2, head_dim=32, num_hidden_layers=1)
    x = normal(generator, 2, 5, 2, 32)
    positions = torch.randint(0, 5000, (2, 5), generator=generator, dtype=torch.int32)
    cos, sin = angles(positions, 16)
    full = modeling_glm.GlmRotaryEmbedding(config)(x, positions)
    heads_first = x.transpose(1, 2)
    expected, _ = modeling_glm.apply_rotary_pos_emb(heads_first, heads_first, *full)
    ours = apply(ops.rope, x, cos, sin, interleaved=True)
    torch.testing.assert_close(ours, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_partial_rope_passes_the_rest_through(generator: torch.Generator) -> None:
    x = normal(generator, 1, 3, 2, 20)
    cos, sin = angles(torch.arange(3, dtype=torch.int32)[None], 8)
    ours = apply(ops.rope, x, cos, sin)
    assert torch.equal(ours[..., 8:], x[..., 8:])
    assert torch.equal(ours[..., :8], apply(ops.rope, x[..., :8].contiguous(), cos, sin))


def qkv(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q[b, t, h, d], k[b, s, g, d], v[b, s, g, e] with h a multiple of g and s at least t."""
    b, t, g, d, e = (draw(generator, 1, 4) for _ in range(5))
    s, h = t + draw(generator, 0, 9), g * draw(generator, 1, 3)
    shapes = (b, t, h, 4 * d), (b, s, g, 4 * d), (b, s, g, 4 * e)
    return [normal(generator, *shape, dtype=dtype) for shape in shapes]


def torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: Any) -> Tensor:
    """F.scaled_dot_product_attention in f32 on our layouts."""
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, **more).transpose(1, 2)


def close(ours: Tensor, expected: Tensor) -> None:
    tolerance = 2e-5 if ours.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_by_positions(dtype: torch.dtype, generator: torch.Generator) -> None:
    q, k, v = qkv(generator, dtype)
    b, t, s = q.shape[0], q.shape[1], k.shape[1]
    positions = torch.randint(0, s, (b, t), generator=generator, dtype=torch.int32)
    key = torch.arange(s)
    seen = (key <= positions[..., None])[:, None]
    close(apply(ops.attention, q, k, v, positions), torch_attention(q, k, v, seen))
    seen = seen & (key > positions[..., None] - 3)[:, None]
    close(apply(ops.attention, q, k, v, positions, window=3), torch_attention(q, k, v, seen))


def test_attention_without_positions(generator: torch.Generator) -> None:
    q, k, v = qkv(generator)
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril()
    close(apply(ops.attention, q, k, v), torch_attention(q, k, v, mask))
    close(apply(ops.attention, q, k, v, causal=False, scale=0.3),
          torch_attention(q, k, v, None, scale=0.3))


def test_attention_with_masks(generator: torch.Generator) -> None:
    q, k, v = qkv(generator)
    b, t, h, s = *q.shape[:3], k.shape[1]
    for shape in [(b, h, t, s), (b, 1, t, s), (1, 1, 1, s), (t, s)]:
        added = normal(generator, *shape)
        seen = added > -1
        seen[..., 0] = True
        close(apply(ops.attention, q, k, v, mask=added, causal=False),
              torch_attention(q, k, v, added))
        close(apply(ops.attention, q, k, v, mask=seen, causal=False),
              torch_attention(q, k, v, seen))
    causal = torch.ones(t, s, dtype=torch.bool).tril()
    close(apply(ops.attention, q, k, v, mask=seen), torch_attention(q, k, v, causal & seen))


def test_softcap(generator: torch.Generator) -> None:
    q, k, v = qkv(generator)
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2))
    weights = (2.0 * torch.tanh(scores * q.shape[-1] ** -0.5 / 2.0)).softmax(-1)
    expected = torch.einsum("bhts,bshe->bthe", weights,
                            v.repeat_interleave(q.shape[2] // v.shape[2], 2))
    close(apply(ops.attention, q, k, v, causal=False, softcap=2.0), expected)


def test_rows_that_see_nothing_are_zero(generator: torch.Generator) -> None:
    q, k, v = (normal(generator, 1, 3, 2, 8) for _ in range(3))
    positions = torch.tensor([[-1, 0, -1]], dtype=torch.int32)
    ours = apply(ops.attention, q, k, v, positions)
    assert torch.equal(ours[0, 0], torch.zeros(2, 8))
    assert torch.equal(ours[0, 2], torch.zeros(2, 8))
    close(ours[0, 1], v[0, 0])
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert not apply(ops.attention, q, k, v, mask=nothing, causal=False).any()
    minus = torch.full((3, 3), -torch.inf)
    assert not apply(ops.attention, q, k, v, mask=minus, causal=False).any()


def test_slots_beyond_every_position_are_never_read(generator: torch.Generator) -> None:
    q, k, v = (normal(generator, 2, s, 2, 8) for s in (2, 6, 6))
    positions = torch.tensor([[1, 2], [-1, 0]], dtype=torch.int32)
    expected = apply(ops.attention, q, k, v, positions)
    k[0, 3:], v[0, 3:], k[1, 1:], v[1, 1:] = (torch.nan,) * 4
    assert torch.equal(apply(ops.attention, q, k, v, positions), expected)


def test_kv_append(generator: torch.Generator) -> None:
    cache, x = normal(generator, 2, 6, 2, 4), normal(generator, 2, 3, 2, 4)
    positions = torch.tensor([[2, 3, 4], [-1, 0, 1]], dtype=torch.int32)
    before = cache.clone()
    ours = apply(ops.kv_append, cache, x, positions)
    assert torch.equal(cache, before)
    before[0, 2:5], before[1, :2] = x[0], x[1, 1:]
    assert torch.equal(ours, before)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_append(interleaved: bool, generator: torch.Generator) -> None:
    q, k, v = normal(generator, 2, 3, 4, 8), normal(generator, 2, 3, 2, 8), \
        normal(generator, 2, 3, 2, 12)
    caches = normal(generator, 2, 6, 2, 8), normal(generator, 2, 6, 2, 12)
    positions = torch.tensor([[2, 3, 4], [-1, 0, 1]], dtype=torch.int32)
    cos, sin = angles(positions, 8)
    ours = apply(ops.rope_append, q, k, v, cos, sin, positions, *caches, interleaved=interleaved)
    turned = apply(ops.rope, k, cos, sin, interleaved=interleaved)
    assert torch.equal(ours[0], apply(ops.rope, q, cos, sin, interleaved=interleaved))
    assert torch.equal(ours[1], apply(ops.kv_append, caches[0], turned, positions))
    assert torch.equal(ours[2], apply(ops.kv_append, caches[1], v, positions))


def test_norm_rope_append(generator: torch.Generator) -> None:
    """The norms first, then rope_append."""
    q, k, v = normal(generator, 2, 3, 4, 8), normal(generator, 2, 3, 2, 8), \
        normal(generator, 2, 3, 2, 12)
    caches = normal(generator, 2, 6, 2, 8), normal(generator, 2, 6, 2, 12)
    weights = normal(generator, 8), normal(generator, 8)
    positions = torch.tensor([[2, 3, 4], [-1, 0, 1]], dtype=torch.int32)
    cos, sin = angles(positions, 6)
    ours = apply(ops.norm_rope_append, q, k, v, cos, sin, positions, *caches, *weights, eps=0.1)
    normed = [x * (x * x).mean(-1, keepdim=True).add(0.1).rsqrt() * w
              for x, w in zip((q, k), weights, strict=True)]
    wanted = apply(ops.rope_append, *normed, v, cos, sin, positions, *caches)
    for found, expected in zip(ours, wanted, strict=True):
        torch.testing.assert_close(found, expected)


B, T, S = Dim("batch"), Dim("tokens"), Dim("slots")
Q = Value(TensorType((B, T, 4, 8), "f32"), name="q")
K = Value(TensorType((B, S, 2, 8), "f32", Layout()), name="k", kind="state")
K3 = Value(TensorType((B, S, 3, 8), "f32", Layout()), name="k", kind="state")
P = Value(TensorType((B, T), "i32"), name="p")
COS = Value(TensorType((B, T, 5), "f32"), name="cos")


def test_the_cache_keeps_its_layout() -> None:
    x = Value(TensorType((B, T, 2, 8), "f32"))
    assert ops.kv_append(K, x, P).type == K.type


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.attention(Q, K3, K3, P), "4 heads cannot share 3 kv heads"),
    (lambda: ops.attention(Q, K, K, Q), r"positions is f32\[batch, tokens, 4, 8\], wanted"),
    (lambda: ops.attention(Q, K, K, mask=P), r"mask is i32\[batch, tokens\], wanted bool or f32"),
    (lambda: ops.attention(Q, K, K, P, window=-1), "window is -1"),
    (lambda: ops.attention(Q, K, K, P, causal=False, window=4), "causal is False"),
    (lambda: ops.attention(Q, K, K, P, softcap=-1.0), "softcap is -1.0"),
    (lambda: ops.attention(Q, K), "operand v is missing"),
    (lambda: ops.kv_append(K, Q, P), r"x is f32\[batch, tokens, 4, 8\]: g is 4"),
    (lambda: ops.rope(Q, COS, COS), r"it turns 2 \* 5 channels"),
    (lambda: ops.rope_angles(P, rotary_dim=7, theta=1e4), "rotary_dim is 7, wanted an even"),
    (lambda: ops.rope_angles(P, rotary_dim=8, theta=0.0), "theta is 0.0"),
    (lambda: ops.rope_angles(P, rotary_dim=8, theta=1e4, scaling=(("rope_type", "yarn"),)),
     r"rope_type 'yarn' is not supported(.|\n)*default, linear, llama3"),
    (lambda: ops.rope_angles(P, rotary_dim=8, theta=1e4, scaling=(("rope_type", "linear"),)),
     "has no factor"),
    (lambda: ops.rope_angles(P, rotary_dim=8, theta=1e4, scaling=("linear", 2.0)), "pairs"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_name_the_users_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        call()
    assert str(caught.value.loc) == f"test_ops_attention.py:{call.__code__.co_firstlineno}"
