"""The calls of ATB's torch example with ATB's attention, in the emulation: against transformers'
own layer, and what that attention does not take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from atbcase import (
    BATCH,
    PADDED,
    PROMPT,
    SIZES,
    Masks,
    Theirs,
    added,
    atb_mask,
    bool_padded,
    drawn_step,
    empty,
    flat,
    no_mask,
)
from torch import Tensor

from graphdsl.borders.atb import AtbLayer
from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.layer import KVCache
from graphdsl.lazy import torch_dtype
from graphdsl.models import llama
from graphdsl.reference import TOLERANCE
from graphdsl.runtime.torch_class import register

STEPS = 3

Execute = Callable[[Sequence["Tensor | None"]], list[Tensor]]


@pytest.fixture(scope="session")
def ascend(emulation: Path) -> BuildOptions:
    return BuildOptions(cache=emulation, backend="ascend", dtype="f16",
                        environment=dict(os.environ))


def layer_for(options: BuildOptions, **changes: Any) -> AtbLayer:
    return AtbLayer(llama.LlamaLayer(SIZES), replace(options, **changes), reserve=24)


def padded_by(masks: Masks) -> tuple[int, ...]:
    return PADDED if masks in (bool_padded, added) else (0, 0)


def run(execute: Execute, name: str, masks: Sequence[Masks]) -> list[list[Tensor]]:
    """The pasts of all calls; every result is that of transformers' layer."""
    dtype, theirs = torch_dtype(name), Theirs.drawn(torch_dtype(name))
    weights = [w.to(dtype) for w in theirs.weights]
    tables = [t.to(dtype) for t in theirs.tables]
    padding, past, seen = padded_by(masks[0]), empty(dtype), 0
    pasts = []
    for number in range(STEPS + 1):
        x = drawn_step(number).to(dtype)
        tokens = x.shape[1]
        at = (torch.arange(seen, seen + tokens) - torch.tensor(padding)[:, None]).clamp(min=0)
        mask = masks[number % len(masks)](tokens, seen)
        pasts.append(past)
        y, *past = execute([x, *weights, at, *tables, mask, *past])
        wanted, *rows = theirs.step(x.float(), at, atb_mask(tokens, seen, padding))
        assert bool(torch.isfinite(y).all())
        for row, gap in enumerate(padding):
            first = max(gap - seen, 0)
            torch.testing.assert_close(y[row, first:].float(), wanted[row, first:],
                                       rtol=TOLERANCE[name], atol=TOLERANCE[name])
        for ours, other in zip(past, rows, strict=True):
            torch.testing.assert_close(ours.float(), other, rtol=TOLERANCE[name],
                                       atol=TOLERANCE[name])
        seen += tokens
    return [*pasts, past]


def addresses(pasts: list[list[Tensor]]) -> set[tuple[int, ...]]:
    """Where the rows of all presents begin."""
    return {tuple(t.data_ptr() for t in past) for past in pasts[1:]}


def test_the_example_in_every_spelling(ascend: BuildOptions, class_cache: Path) -> None:
    """Every Operation has a cache of its own, of which presents are views."""
    layer = layer_for(ascend)
    name = register(layer, cache=class_cache, environment=dict(os.environ))
    assert name == "LlamaLayer"
    made = [torch.classes.OperationTorch.OperationTorch(name),
            torch.classes.graphdsl.Operation(name)]
    found = [addresses(run(each.execute, "f16", masks))
             for each, masks in zip(made, ([bool_padded, added], [flat]), strict=True)]
    found.append(addresses(run(layer.execute, "f16", [added])))
    assert [len(each) for each in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3
    assert layer.copied_bytes == 0
    made[0].set_param('{"headNum": 4, "kvHeadNum": 2, "rmsNormEps": 1e-6, "rotaryCoeff": 2}')
    with pytest.raises(RuntimeError, match=r"LlamaLayer: set_param: headNum is 5, .* with 4"):
        made[0].set_param('{"headNum": 5}')


@pytest.mark.full
@pytest.mark.parametrize("masks", [no_mask, added, flat])
@pytest.mark.parametrize(("soc", "dtype"), [("910b", "f16"), ("910b", "bf16"), ("310p", "f16")])
def test_chips_and_dtypes(ascend: BuildOptions, soc: str, dtype: str, masks: Masks) -> None:
    layer = layer_for(ascend, soc=soc, dtype=dtype)
    pasts = run(layer.execute, dtype, [masks])
    assert len(addresses(pasts)) == 1
    new = sum(t.numel() * t.element_size() for t in pasts[-1])
    assert layer.copied_bytes == (new if soc == "310p" else 0)  # rows come out of tiles once
    before = layer.copied_bytes
    theirs = Theirs.drawn(torch_dtype(dtype))
    weights, tables = ([t.to(torch_dtype(dtype)) for t in each]
                       for each in (theirs.weights, theirs.tables))
    at = torch.full((BATCH, 1), PROMPT)
    x = drawn_step(9).to(torch_dtype(dtype))
    wanted, *held = layer.execute([x, *weights, at, *tables, None, *pasts[-1]])
    again, *_ = layer.execute([x, *weights, at, *tables, None, *(t.clone() for t in pasts[-1])])
    assert torch.equal(wanted, again)
    assert layer.copied_bytes > before
    assert len(held[0]) == PROMPT + STEPS + 1


def call(mask: Tensor) -> list[Any]:
    """A whole call in f16: three tokens that come first."""
    theirs = Theirs.drawn()
    weights, tables = ([t.half() for t in each] for each in (theirs.weights, theirs.tables))
    at = torch.arange(3).expand(BATCH, 3)
    return [torch.ones(BATCH, 3, SIZES.hidden).half(), *weights, at, *tables, mask,
            *empty(torch.float16)]


@pytest.mark.parametrize("mask", [
    -torch.arange(3.0).expand(3, 3), torch.ones(3, 3).half(), torch.full((3, 3), torch.nan),
    torch.full((3, 3), -8000.0), torch.full((3, 3), torch.inf),
], ids=["ALiBi", "ATB's own of bf16", "nan", "not low enough", "inf"])
def test_masks_that_do_more_than_hide(ascend: BuildOptions, mask: Tensor) -> None:
    """Before anything is built."""
    layer = layer_for(ascend, cache=Path("/nowhere"))
    with pytest.raises(GraphError, match=r"LlamaLayer: mask adds .* to a score, wanted 0, or at mo"
                       r"st -9000(?s:.)*hint: a bool mask"):
        layer.execute(call(mask))


@pytest.mark.parametrize(("changes", "message"), [
    ({"dtype": "f32"}, r"builds no layers of f32: .*(?s:.)*hint: --dtype f16"),
    ({"dtype": "bf16", "soc": "310p"}, "builds no layers of bf16: a 310p has none"),
    ({"soc": "910a"}, "no SoC 910a"),
])
def test_builds_that_are_refused(ascend: BuildOptions, changes: dict[str, str],
                                 message: str) -> None:
    with pytest.raises(GraphError, match=message):
        layer_for(ascend, **changes)


def test_a_cache_of_another_order_is_refused(ascend: BuildOptions) -> None:
    layer = llama.LlamaLayer(SIZES)
    layer.kv = KVCache(SIZES.kv_heads, SIZES.head_dim, layout="sbnd")
    with pytest.raises(GraphError, match="keeps its cache as sbnd, wanted bsnd"):
        AtbLayer(layer, ascend)
