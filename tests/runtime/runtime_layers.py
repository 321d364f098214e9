"""Small layers for the runtime's tests, and calls of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from quick import quick_environment

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer, Param, trace
from graphdsl.layout import Layout
from graphdsl.ops import (
    attention,
    embedding,
    linear,
    merge_heads,
    rms_norm,
    silu,
    split_heads,
    transpose,
)
from graphdsl.runtime.operator import Operator, State, load

HIDDEN = 32
LENGTHS = (7, 1, 1, 3, 5, *[1] * 15)
"""Twenty steps: prompts and single tokens."""
SLOTS = sum(LENGTHS)
PAGED = "bnsd:paged/4"
SECONDS = 60
"""After which a child that hangs is ended."""


class Block(Layer):
    """Attention over a cache: state, positions, one result."""

    signature = "x[batch, tokens, 32], positions[batch, tokens]:i32 -> y[batch, tokens, 32]"

    def __init__(self) -> None:
        self.norm = Param(HIDDEN)
        self.wq = Param(64, HIDDEN)
        self.wk = Param(32, HIDDEN)
        self.wv = Param(32, HIDDEN)
        self.wo = Param(HIDDEN, 64)
        self.kv = KVCache(2, 16)

    def forward(self, x: Value, positions: Value) -> Value:
        h = rms_norm(x, self.norm, eps=1e-5)
        q, k, v = (split_heads(linear(h, w), n)
                   for w, n in ((self.wq, 4), (self.wk, 2), (self.wv, 2)))
        kv = self.kv.append(k, v, positions)
        return x + linear(merge_heads(attention(q, kv.k, kv.v, positions)), self.wo)


class Pair(Layer):
    """Two results and no state."""

    signature = "x[batch, tokens, 32] -> y[batch, tokens, 48], h[batch, tokens, 32]"

    def __init__(self) -> None:
        self.norm = Param(HIDDEN)
        self.w = Param(48, HIDDEN)

    def forward(self, x: Value) -> tuple[Value, Value]:
        h = rms_norm(x, self.norm, eps=1e-5)
        return silu(linear(h, self.w)), h


class Words(Layer):
    """Token ids into rows of two tables, the shorter one through a view."""

    signature = "ids[batch, tokens]:i32 -> y[batch, tokens, 32]"

    def __init__(self) -> None:
        self.table = Param(60, HIDDEN)
        self.short = Param(50, HIDDEN)

    def forward(self, ids: Value) -> Value:
        turned = embedding(transpose(ids, order=(1, 0)), self.short)
        return embedding(ids, self.table) + transpose(turned, order=(1, 0, 2))


def built(layer: Layer, cache: Path, dtype: str = "f32", layout: str = "") -> Path:
    """The folder of the layer's build; all caches have the layout, if one is given."""
    options = BuildOptions(cache, dtype=dtype, environment=quick_environment(),
                           passes={"kv_layout": options_of(layout)} if layout else {})
    return build_graph(trace(layer, dtype), options).path


def options_of(layout: str) -> dict[str, str]:
    """The options of kv_layout that ask for this layout."""
    asked = Layout.parse(layout)
    found = {"order": asked.order, "policy": asked.policy, "storage": asked.storage}
    return found | ({"block": str(asked.block)} if asked.block else {})


def weights_of(operator: Operator, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of small random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {w["name"]: torch.randn(w["shape"], generator=generator) / 4
            for w in operator.manifest["weights"]}


def opened(path: Path) -> Operator:
    """The operator of a build, with weights."""
    operator = load(path)
    return operator.bind(weights_of(operator))


def steps(batch: int = 2, lengths: Sequence[int] = LENGTHS,
          seed: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """x and positions of one step after the other."""
    generator, past = torch.Generator().manual_seed(seed), 0
    for tokens in lengths:
        positions = torch.arange(past, past + tokens, dtype=torch.int32).repeat(batch, 1)
        yield torch.randn(batch, tokens, HIDDEN, generator=generator), positions
        past += tokens


def session(operator: Operator, state: State, seed: int = 1) -> list[torch.Tensor]:
    """The results of all steps, called directly."""
    dtype = operator.inputs[0].dtype
    return [operator(x.to(dtype), positions, state=state) for x, positions in steps(seed=seed)]


def close(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    """Equal but for the order of sums, which depends on the number of threads."""
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def child_result(work: Callable[[], bool]) -> int:
    """The exit code of a forked child: 0 where `work` is true."""
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    for _ in range(SECONDS * 20):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1
