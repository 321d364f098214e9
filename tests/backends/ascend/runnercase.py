"""Libraries of programs written by hand on the emulation, and a Llama layer in torch for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rendercase import BLOCK, FFN, HEAD_DIM, HEADS, KV_HEADS, KV_WIDTH, LONGEST, WIDTH, Case
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from graphdsl.backends.ascend.compiling import compile_library
from graphdsl.backends.ascend.render import render
from graphdsl.runtime._native import Addresses, Library, Plan


def build(case: Case, folder: Path, cache: Path) -> Path:
    """A library on the emulation, whose archive is in `cache`."""
    for name, text in render(case.program, case.ports, case.dims).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    compile_library(folder, "{}", folder / "library.so", os.environ, cache, None)
    return folder / "library.so"


@dataclass
class Loaded:
    """A library and its plans, by sizes."""

    library: Library
    given: int
    params: int
    plans: dict[tuple[int, ...], Plan] = field(default_factory=dict)

    def step(self, dims: tuple[int, ...], inputs: list[Tensor], params: list[Tensor],
             output: Tensor) -> Tensor:
        """Runs a step; the output is written and given back."""
        if dims not in self.plans:
            self.plans[dims] = Plan(self.library, list(dims), 1, 0, self.given, self.params, 1, [],
                                    [])
        plan = self.plans[dims]
        plan.bind(Addresses([p.data_ptr() for p in params]))
        assert plan.step([t.data_ptr() for t in (*inputs, output)])
        return output


def llama_weights(dtype: torch.dtype) -> dict[str, Tensor]:
    """By their names, in the order of the params; tables of angles too."""
    torch.manual_seed(7)
    shapes = {"attn_norm": (WIDTH,), "wqkv": (WIDTH + 2 * KV_WIDTH, WIDTH), "wo": (WIDTH, WIDTH),
              "ffn_norm": (WIDTH,), "w_gate_up": (2 * FFN, WIDTH), "w_down": (WIDTH, FFN)}
    made = {n: (torch.randn(s) * s[-1] ** -0.5 + (len(s) == 1)).to(dtype)
            for n, s in shapes.items()}
    frequency = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.outer(torch.arange(LONGEST), frequency).repeat(1, 2)
    wide = torch.float32 if dtype == torch.float16 else dtype
    return {**made, "angles.cos": angles.cos().to(wide), "angles.sin": angles.sin().to(wide)}


def llama(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The layer on whole sequences [batch, tokens, hidden] in f32."""
    w = {name: tensor.float() for name, tensor in w.items()}
    batch, tokens, _ = x.shape
    h = rms_norm(x, (WIDTH,), w["attn_norm"], 1e-5)
    q, k, v = (h @ w["wqkv"].T).split((WIDTH, KV_WIDTH, KV_WIDTH), -1)
    heads = [_turned(w, q.view(batch, tokens, HEADS, HEAD_DIM)),
             _turned(w, k.view(batch, tokens, KV_HEADS, HEAD_DIM)),
             v.view(batch, tokens, KV_HEADS, HEAD_DIM)]
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(y.transpose(1, 2) for y in heads), is_causal=True, enable_gqa=True)
    x = x + attended.transpose(1, 2).reshape(batch, tokens, WIDTH) @ w["wo"].T
    gate, up = (rms_norm(x, (WIDTH,), w["ffn_norm"], 1e-5) @ w["w_gate_up"].T).chunk(2, -1)
    return x + (silu(gate) * up) @ w["w_down"].T


def _turned(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = (w[name][:x.shape[1], None] for name in ("angles.cos", "angles.sin"))
    return x * cos + torch.cat((-b, a), -1) * sin


@dataclass
class Sequences:
    """Paged caches of the layer, with the blocks of every sequence in an order of their own."""

    loaded: Loaded
    weights: Mapping[str, Tensor]
    dtype: torch.dtype
    batch: int
    pages: int

    def __post_init__(self) -> None:
        blocks = self.batch * self.pages + 1
        shape = (blocks, BLOCK, KV_HEADS, HEAD_DIM)
        # A number that would be seen if it were read.
        self.caches = [torch.full(shape, 100.0, dtype=self.dtype) for _ in range(2)]
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(3))
        self.table = order[:-1].view(self.batch, self.pages).int()

    def step(self, x: Tensor, positions: Tensor) -> Tensor:
        """The layer's result for new tokens [batch, tokens, hidden]."""
        dims = (self.batch, self.caches[0].shape[0], self.pages, x.shape[1])
        inputs = [x.to(self.dtype).contiguous(), positions.int().contiguous(), *self.caches,
                  self.table]
        return self.loaded.step(dims, inputs, list(self.weights.values()),
                                torch.empty(x.shape, dtype=self.dtype))
