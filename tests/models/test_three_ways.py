"""The Llama layer in three spellings ends in one graph: with the library's ops, with kernels only,
and as a transcription of the forward of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from graphdsl.backends.cpu.backend import CPU
from graphdsl.ir import Graph, Value
from graphdsl.layer import Model, trace
from graphdsl.models.llama import Config, LlamaLayer
from graphdsl.ops import (
    arange,
    cast,
    concat,
    cos,
    exp,
    expand,
    matmul,
    matmul_nt,
    mean,
    pow,
    reduce_max,
    reduce_sum,
    reshape,
    rope_angles,
    rope_frequencies,
    rsqrt,
    sigmoid,
    sin,
    softmax,
    transpose,
    where,
)
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.passes.samples import reference_outputs, samples
from graphdsl.printer import text
from graphdsl.reference import TOLERANCE, error_of

SMALL = Config(vocab=50, hidden=32, layers=1, heads=4, kv_heads=2, head_dim=8, ffn=48)
SIGNATURE = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"


class Library(LlamaLayer):
    """The layer of the library, which makes its own angles."""

    signature = SIGNATURE

    def forward(self, x: Value, positions: Value) -> Value:  # type: ignore[override]
        c = self.config
        tables = rope_angles(positions, rotary_dim=c.head_dim, theta=c.theta)
        return super().forward(x, positions, *tables)


class Kernels(LlamaLayer):
    """Nothing but kernels, [batch, tokens, heads, d] as long as it goes."""

    signature = SIGNATURE

    def norm(self, x: Value, weight: Value) -> Any:
        h = cast(x, dtype="f32")
        variance = reduce_sum(h * h) / self.config.hidden
        return cast(h * rsqrt(variance + self.config.eps), dtype=x.dtype) * weight

    def rotated(self, x: Value, angles: Value) -> Any:
        half = self.config.head_dim // 2
        c, s = cos(angles)[:, :, None], sin(angles)[:, :, None]
        wide = cast(x, dtype="f32")
        a, b = wide[..., :half], wide[..., half:]
        return cast(concat(a * c - b * s, b * c + a * s, axis=3), dtype=x.dtype)

    def attended(self, q: Value, k: Value, v: Value, positions: Value) -> Any:
        c, (batch, slots) = self.config, k.shape[:2]
        wide = (batch, slots, c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        k, v = (reshape(expand(reshape(x, shape=(*x.shape[:3], 1, c.head_dim)), shape=wide),
                        shape=(batch, slots, c.heads, c.head_dim)) for x in (k, v))
        q, v = (transpose(x, order=(0, 2, 1, 3)) for x in (q, v))
        scores = cast(matmul(q, transpose(k, order=(0, 2, 3, 1))), dtype="f32")
        seen = reshape(positions, shape=(batch, 1, q.shape[2], 1)) >= arange(size=slots)
        scores = where(seen, scores / math.sqrt(c.head_dim), float("-inf"))
        weights = exp(scores - reduce_max(scores))
        mixed = matmul(cast(weights / reduce_sum(weights), dtype=v.dtype), v)
        return transpose(mixed, order=(0, 2, 1, 3))

    def forward(self, x: Value, positions: Value) -> Value:  # type: ignore[override]
        c, (batch, tokens) = self.config, x.shape[:2]
        frequencies = rope_frequencies(rotary_dim=c.head_dim, theta=c.theta)
        angles = cast(positions, dtype="f32")[..., None] * frequencies

        h = self.norm(x, self.attn_norm)
        q = reshape(matmul_nt(h, self.wq), shape=(batch, tokens, c.heads, c.head_dim))
        k = reshape(matmul_nt(h, self.wk), shape=(batch, tokens, c.kv_heads, c.head_dim))
        v = reshape(matmul_nt(h, self.wv), shape=(batch, tokens, c.kv_heads, c.head_dim))
        kv = self.kv.append(self.rotated(k, angles), v, positions)
        attended = self.attended(self.rotated(q, angles), kv.k, kv.v, positions)
        merged = reshape(attended, shape=(batch, tokens, c.heads * c.head_dim))
        x = x + matmul_nt(merged, self.wo)

        h = self.norm(x, self.ffn_norm)
        gate, up = matmul_nt(h, self.w_gate), matmul_nt(h, self.w_up)
        wide = cast(gate, dtype="f32")
        activated = cast(wide * (1.0 / (exp(-wide) + 1.0)), dtype=gate.dtype)
        y: Value = x + matmul_nt(activated * up, self.w_down)
        return y


class Transcribed(LlamaLayer):
    """modeling_llama.py of transformers: views, transposes, repeat_kv, rotate_half, a mask that is
    added, softmax in f32."""

    signature = SIGNATURE

    def rms_norm(self, hidden_states: Value, weight: Value) -> Any:
        input_dtype = hidden_states.dtype
        hidden_states = cast(hidden_states, dtype="f32")
        variance = mean(pow(hidden_states, 2.0))
        hidden_states = hidden_states * rsqrt(variance + self.config.eps)
        return weight * cast(hidden_states, dtype=input_dtype)

    def rotary_embedding(self, position_ids: Value, dtype: str) -> Any:
        inv_freq = rope_frequencies(rotary_dim=self.config.head_dim, theta=self.config.theta)
        freqs = cast(position_ids[..., None], dtype="f32") * inv_freq
        emb = concat(freqs, freqs, axis=-1)
        attention_scaling = 1.0
        return (cast(cos(emb) * attention_scaling, dtype=dtype),
                cast(sin(emb) * attention_scaling, dtype=dtype))

    def causal_mask(self, position_ids: Value, dtype: str) -> Any:
        batch, tokens = position_ids.shape
        kv_arange = arange(size=self.kv.k.shape[1])
        seen = kv_arange <= reshape(position_ids, shape=(batch, 1, tokens, 1))
        lowest = torch.finfo({"f32": torch.float32, "bf16": torch.bfloat16}[dtype]).min
        return where(seen, 0.0, lowest) if dtype == "f32" else cast(
            where(seen, 0.0, lowest), dtype=dtype)

    def attention(self, hidden_states: Value, position_ids: Value, mask: Value) -> Any:
        input_shape = hidden_states.shape[:-1]
        c, dtype = self.config, hidden_states.dtype

        def heads(weight: Value, count: int) -> Any:
            states = reshape(matmul_nt(hidden_states, weight),
                             shape=(*input_shape, count, c.head_dim))
            return transpose(states, order=(0, 2, 1, 3))

        query_states = heads(self.wq, c.heads)
        key_states, value_states = heads(self.wk, c.kv_heads), heads(self.wv, c.kv_heads)
        cosines, sines = self.rotary_embedding(position_ids, dtype)
        query_states = apply_rotary_pos_emb(query_states, cosines, sines)
        key_states = apply_rotary_pos_emb(key_states, cosines, sines)
        key_states, value_states = (transpose(states, order=(0, 2, 1, 3))
                                    for states in (key_states, value_states))
        kv = self.kv.append(key_states, value_states, position_ids)
        key_states, value_states = (transpose(states, order=(0, 2, 1, 3))
                                    for states in (kv.k, kv.v))
        key_states = repeat_kv(key_states, c.heads // c.kv_heads)
        value_states = repeat_kv(value_states, c.heads // c.kv_heads)
        attn_weights = matmul(query_states, transpose(key_states, order=(0, 1, 3, 2)))
        attn_weights = attn_weights * c.head_dim ** -0.5
        attn_weights = attn_weights + mask
        attn_weights = cast(softmax(cast(attn_weights, dtype="f32")), dtype=dtype)
        attn_output = transpose(matmul(attn_weights, value_states), order=(0, 2, 1, 3))
        return matmul_nt(reshape(attn_output, shape=(*input_shape, c.heads * c.head_dim)), self.wo)

    def mlp(self, x: Value) -> Any:
        gate = matmul_nt(x, self.w_gate)
        return matmul_nt(gate * sigmoid(gate) * matmul_nt(x, self.w_up), self.w_down)

    def forward(self, hidden_states: Value, position_ids: Value) -> Value:  # type: ignore[override]
        mask = self.causal_mask(position_ids, hidden_states.dtype)
        residual = hidden_states
        hidden_states = self.rms_norm(hidden_states, self.attn_norm)
        hidden_states = self.attention(hidden_states, position_ids, mask)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.rms_norm(hidden_states, self.ffn_norm)
        hidden_states = self.mlp(hidden_states)
        return residual + hidden_states


def rotate_half(x: Value) -> Any:
    half = x.shape[-1] // 2  # type: ignore[operator]
    x1, x2 = x[..., :half], x[..., half:]
    return concat(-x2, x1, axis=-1)


def apply_rotary_pos_emb(states: Value, cosines: Value, sines: Value) -> Any:
    cosines, sines = cosines[:, None], sines[:, None]
    return (states * cosines) + (rotate_half(states) * sines)


def repeat_kv(hidden_states: Value, n_rep: int) -> Any:
    batch, num_key_value_heads, slen, head_dim = hidden_states.shape
    hidden_states = hidden_states[:, :, None, :, :]
    hidden_states = expand(hidden_states,
                           shape=(batch, num_key_value_heads, n_rep, slen, head_dim))
    return reshape(hidden_states, shape=(batch, num_key_value_heads * n_rep, slen, head_dim))


WAYS = (Library, Kernels, Transcribed)


def lowered(way: type[LlamaLayer], dtype: str) -> tuple[Graph, Lowered]:
    """The layer as it is written, and what the passes make of it for the cpu."""
    graph = trace(way(SMALL), dtype)
    return graph, run_pipeline(graph, CPU().target)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_all_three_end_in_one_graph(dtype: str) -> None:
    found = {way: text(lowered(way, dtype)[1].graph, locations=False) for way in WAYS}
    wanted = found[Library]
    assert {"rope_append", "attention", "matmul_prologue"} <= set(wanted.replace("(", " ").split())
    for way in (Kernels, Transcribed):
        assert found[way].replace(way.__name__, "Library") == wanted


class Stack(Model):
    """Three layers of one spelling in a loop."""

    signature = SIGNATURE

    def __init__(self, way: type[LlamaLayer]) -> None:
        self.config = SMALL
        self.layers = [way(SMALL) for _ in range(3)]

    def forward(self, x: Value, positions: Value) -> Value:
        for layer in self.layers:
            x = layer(x, positions)
        return x


@pytest.mark.parametrize("min_turns", ["2", "100"])
def test_all_three_end_in_one_model(min_turns: str) -> None:
    """Angles and masks leave the repeat, norms cross its borders, whatever the spelling."""
    found = [run_pipeline(trace(Stack(way)), CPU().target, {"roll": {"min_turns": min_turns}})
             for way in WAYS]
    first, *others = (text(after.graph, locations=False) for after in found)
    assert ("repeat" in first) is (min_turns == "2")
    assert others == [first, first]


@pytest.mark.parametrize("way", [Kernels, Transcribed])
def test_every_pass_is_verified(way: type[LlamaLayer]) -> None:
    run_pipeline(trace(way(SMALL)), CPU().target, verify=True)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("way", [Kernels, Transcribed])
def test_the_numbers_are_those_of_the_library(way: type[LlamaLayer], dtype: str) -> None:
    """What is written and what the passes made of it, in f64 and in the dtype itself, but for the
    row of a token that is padding."""
    graph, after = lowered(way, dtype)
    library = trace(Library(SMALL), dtype)
    given = samples(library, 0, past=3)
    real = given.inputs["positions"] >= 0
    for exact in (True, False):
        wanted, *caches = reference_outputs(library, given, exact=exact)
        tolerance = TOLERANCE["f64" if exact else dtype]
        for form, recipes in ((graph, {}), (after.graph, after.recipes)):
            y, *new_caches = reference_outputs(form, given, recipes, exact=exact)
            assert error_of(y[real], wanted[real]) <= tolerance
            for cache, new in zip(caches, new_caches, strict=True):
                assert error_of(new, cache) <= tolerance
