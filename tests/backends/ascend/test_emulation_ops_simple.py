"""The emulation's operations on single elements, and those that only move them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from opscase import (
    BF16,
    F16,
    F32,
    INTS,
    INVALID_PARAM,
    INVALID_TENSOR_DIM,
    NEEDS_COMPILER,
    NOT_IN_TABLE,
    NZ,
    Given,
    Ops,
    close,
    nz,
    random,
    to_nz,
)

pytestmark = NEEDS_COMPILER

Maths = Callable[..., torch.Tensor]
LONGS = torch.int64
functional = torch.nn.functional


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=["f16", "bf16", "f32"])
@pytest.mark.parametrize(("kind", "fields", "maths"), [
    (1, {}, torch.relu),
    (2, {}, lambda x: functional.gelu(x, approximate="tanh")),
    (2, {"geluMode": 1}, functional.gelu),
    (3, {}, lambda x: x * torch.sigmoid(1.702 * x)),
    (4, {"scale": 1.5}, lambda x: x * torch.sigmoid(1.5 * x)),
    (6, {}, lambda x: functional.silu(x[:, :18]) * x[:, 18:]),
], ids=["relu", "gelu_tanh", "gelu", "fast_gelu", "swish", "swiglu"])
def test_activation(ops: Ops, dtype: torch.dtype, kind: int, fields: dict[str, float],
                    maths: Maths) -> None:
    x = random(5, 36, dtype=dtype) * 4
    taken = {1: (F32, BF16), 2: (F16, BF16, F32), 6: (F16, BF16, F32)}.get(kind, (F16, BF16))
    if dtype not in taken:
        assert ops.refused("Activation", x, activationType=kind, **fields).code == NOT_IN_TABLE
        return
    got, = ops("Activation", x, activationType=kind, **fields)
    close(got, maths(x.double()))


def test_swiglu_along_another_dim(ops: Ops) -> None:
    x = random(5, 6, 7)
    got, = ops("Activation", x, activationType=6, dim=1)
    close(got, functional.silu(x[:, :3].double()) * x[:, 3:].double())
    assert ops.refused("Activation", x, activationType=6).code == INVALID_TENSOR_DIM
    assert ops.refused("Activation", x, activationType=6, dim=3).code == INVALID_PARAM
    for kind in (5, 7, 8, 9):
        assert ops.refused("Activation", x, activationType=kind).code == INVALID_PARAM


ELEWISE: list[tuple[str, int, tuple[torch.dtype, ...], Maths]] = [
    ("muls", 2, (F16, BF16, F32), lambda x: x * 0.25),
    ("cos", 3, (F16, BF16, F32), torch.cos),
    ("sin", 4, (F16, BF16, F32), torch.sin),
    ("neg", 5, (F16, BF16), torch.neg),
    ("tanh", 20, (F16, BF16), torch.tanh),
    ("add", 8, (F16, BF16, F32), torch.add),
    ("mul", 9, (F16, BF16), torch.mul),
    ("realdiv", 10, (F16, BF16, F32), torch.div),
    ("sub", 15, (F16, BF16), torch.sub),
]


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=["f16", "bf16", "f32"])
@pytest.mark.parametrize(("kind", "taken", "maths"), [case[1:] for case in ELEWISE],
                         ids=[case[0] for case in ELEWISE])
def test_elewise(ops: Ops, dtype: torch.dtype, kind: int, taken: tuple[torch.dtype, ...],
                 maths: Maths) -> None:
    x, other = random(5, 3, 7, dtype=dtype), random(3, 1, dtype=dtype, seed=5) + 2
    one = kind < 8 or kind == 20
    inputs = [x] if one else [x, other]
    fields = {"mulsParam__varAttr": 0.25} if kind == 2 else {}
    if dtype not in taken:
        assert ops.refused("Elewise", *inputs, elewiseType=kind, **fields).code == NOT_IN_TABLE
        return
    got, = ops("Elewise", *inputs, elewiseType=kind, **fields)
    close(got, maths(*(tensor.double() for tensor in inputs)))
    if not one:
        got, = ops("Elewise", other, x, elewiseType=kind)
        close(got, maths(other.double(), x.double()))


def test_elewise_of_whole_numbers(ops: Ops) -> None:
    for dtype in (INTS, LONGS):
        x = torch.tensor([[1, -2], [torch.iinfo(dtype).max, 4]], dtype=dtype)
        got, = ops("Elewise", x, torch.tensor([5, 1], dtype=dtype), elewiseType=8)
        assert torch.equal(got, x + torch.tensor([5, 1], dtype=dtype))
    got, = ops("Elewise", x, x.clone(), elewiseType=15)
    assert not got.any()
    assert ops.refused("Elewise", x, x, elewiseType=9).code == NOT_IN_TABLE


@pytest.mark.parametrize(("given", "wanted"), [(F16, F32), (F32, F16), (BF16, F32), (F32, BF16),
                                               (INTS, LONGS), (LONGS, INTS)], ids=str)
def test_cast(ops: Ops, given: torch.dtype, wanted: torch.dtype) -> None:
    codes = {F32: 0, F16: 1, INTS: 3, LONGS: 9, BF16: 27}
    x = (random(3, 37, dtype=F32) * 1000).to(given)
    got, = ops("Elewise", x, elewiseType=1, outTensorType=codes[wanted])
    assert torch.equal(got, x.to(wanted))


def test_casts_that_atb_has_not(ops: Ops) -> None:
    for x, code in ((random(3, 4), 27), (random(3, 4, dtype=BF16), 1), (random(3, 4), 3)):
        assert ops.refused("Elewise", x, elewiseType=1, outTensorType=code).code == NOT_IN_TABLE
    assert ops.refused("Elewise", random(3, 4), elewiseType=1).code == INVALID_PARAM


def test_halves_round_as_torch_rounds_them(ops: Ops) -> None:
    """All of f16 there and back, ties, what is too large or too small for a normal number."""
    every = torch.arange(-2**15, 2**15, dtype=torch.int16).view(F16)
    wide, = ops("Elewise", every, elewiseType=1, outTensorType=0)
    assert torch.equal(wide.nan_to_num(7), every.float().nan_to_num(7))
    finite = every[every.isfinite()].float().unique()
    between = torch.cat([(finite[1:] + finite[:-1]) / 2, torch.tensor([65519.0, 65520.0, -1e9])])
    for dtype, code in ((F16, 1), (BF16, 27)):
        got, = ops("Elewise", between, elewiseType=1, outTensorType=code)
        assert torch.equal(got, between.to(dtype))


def test_elewise_refuses(ops: Ops) -> None:
    x = random(5, 4)
    error = ops.refused("Elewise", x, random(5, 3), elewiseType=8)
    assert (error.code, "other is f16[5, 3]" in error.sentence) == (INVALID_TENSOR_DIM, True)
    for fields in ({}, {"elewiseType": 6}, {"elewiseType": 5, "mulsParam__rsv": 1}):
        assert ops.refused("Elewise", x, **fields).code == INVALID_PARAM
    row = random(4)
    with pytest.raises(AssertionError):  # the result is not as large as the operand
        ops("Elewise", x, row, in_place=(1,), elewiseType=8)
    got, = ops("Elewise", x, row, in_place=(0,), elewiseType=9)
    assert got is x


@pytest.mark.parametrize(("dim", "number", "sizes"), [
    (1, 2, ()), (-1, 3, ()), (0, 2, (2, 4)), (1, 3, (3, 7, 2)), (2, 3, (1, 1, 1))])
def test_split(ops: Ops, dim: int, number: int, sizes: tuple[int, ...]) -> None:
    x = random(6, 12, 3)
    if dim == -1:
        x = x.transpose(1, 2).contiguous()
    parts = list(sizes) or x.shape[dim] // number
    got = ops("Split", x, splitDim=dim, splitNum=number, splitSizes=sizes)
    for part, want in zip(got, x.split(parts, dim), strict=True):
        assert torch.equal(part, want)


@pytest.mark.parametrize(("fields", "code", "words"), [
    ({"splitNum": 4}, INVALID_PARAM, "splitNum is 4, wanted 2 or 3"),
    ({"splitDim": -1, "splitSizes": (4, 8)}, INVALID_PARAM, "splitDim is -1, wanted 0 or more"),
    ({"splitDim": 1, "splitSizes": (4, 4, 4)}, INVALID_PARAM, "splitSizes has 3 sizes"),
    ({"splitDim": 1, "splitSizes": (4, 9)}, INVALID_TENSOR_DIM, "wanted 13 in dim 1"),
    ({"splitDim": 1, "splitSizes": (12, 0)}, INVALID_PARAM, "splitSizes has 0"),
    ({"splitDim": 0}, INVALID_TENSOR_DIM, "a size in dim 0 that 2 divides"),
    ({"splitDim": 2}, INVALID_PARAM, "splitDim is 2, x is f16[5, 12]"),
])
def test_split_refuses(ops: Ops, fields: dict[str, int], code: int, words: str) -> None:
    error = ops.refused("Split", random(5, 12), **fields)
    assert error.code == code
    assert words in error.sentence


def test_concat(ops: Ops) -> None:
    x, other = random(5, 4, 3), random(5, 2, 3)
    got, = ops("Concat", x, other, concatDim=1)
    assert torch.equal(got, torch.cat([x, other], 1))
    got, = ops("Concat", x, x.clone(), concatDim=-3)
    assert torch.equal(got, torch.cat([x, x]))
    assert ops.refused("Concat", x, other, concatDim=0).code == INVALID_TENSOR_DIM
    assert ops.refused("Concat", x, other, concatDim=3).code == INVALID_PARAM
    wide = random(2, 3, dtype=F32)
    assert ops.refused("Concat", wide, wide).code == NOT_IN_TABLE


def test_gather(ops: Ops) -> None:
    table, ids = random(9, 5), torch.tensor([[3, 0], [8, 3]], dtype=INTS)
    got, = ops("Gather", table, ids)
    assert torch.equal(got, table[ids])
    got, = ops("Gather", table, torch.tensor([4, 1]), axis=1)
    assert torch.equal(got, table[:, [4, 1]])
    each, rows = random(2, 4, 3), torch.tensor([[3, 0], [1, 2]], dtype=INTS)
    got, = ops("Gather", each, rows, axis=1, batchDims=1)
    assert torch.equal(got, torch.stack([each[0, [3, 0]], each[1, [1, 2]]]))


def test_gather_refuses(ops: Ops) -> None:
    table = random(9, 5)
    for bad in (9, -1):
        error = ops.refused("Gather", table, torch.tensor([0, bad], dtype=INTS))
        assert f"indices[1] is {bad}, the table f16[9, 5] has 9" in error.sentence
    assert ops.refused("Gather", table, torch.tensor([0]), axis=2).code == INVALID_PARAM
    assert ops.refused("Gather", table, torch.tensor([0]), batchDims=1).code == INVALID_PARAM
    assert ops.refused("Gather", table, torch.tensor([0.5])).code == NOT_IN_TABLE


def test_transpose(ops: Ops) -> None:
    x = random(5, 4, 3)
    for perm in ((1, 0, 2), (2, 0, 1), (0, 1, 2)):
        got, = ops("Transpose", x, perm=perm)
        assert torch.equal(got, x.permute(perm))
    assert ops.refused("Transpose", x, perm=(0, 0, 1)).code == INVALID_PARAM
    assert "wanted 2 dims" in ops.refused("Transpose", x, perm=(1, 0)).sentence


def test_slice(ops: Ops) -> None:
    x = random(5, 4, 3)
    got, = ops("Slice", x, offsets=(1, 0, -2), size=(2, -1, 2))
    assert torch.equal(got, x[1:3, :, 1:])
    assert ops.refused("Slice", x, offsets=(1, 0), size=(1, 1, 1)).code == INVALID_PARAM
    error = ops.refused("Slice", x, offsets=(4, 0, 0), size=(2, 1, 1))
    assert error.code == INVALID_TENSOR_DIM


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=["f16", "bf16", "f32"])
def test_softmax(ops: Ops, dtype: torch.dtype) -> None:
    x = random(5, 4, 3, dtype=dtype) * 9
    for axis in (0, 1, 2, -1):
        got, = ops("Softmax", x, axes=(axis,))
        close(got, x.double().softmax(axis))
    assert ops.refused("Softmax", x, axes=(0, 1)).code == INVALID_PARAM
    assert ops.refused("Softmax", x, axes=(3,)).code == INVALID_PARAM


def test_transdata(ops: Ops) -> None:
    x = random(2, 21, 30)
    folded, = ops("Transdata", x, transdataType=2)
    assert torch.equal(folded, to_nz(x).nan_to_num(0))
    back, = ops("Transdata", Given(folded, NZ), transdataType=1, outCrops=(21, 30))
    assert torch.equal(back, x)
    assert ops.refused("Transdata", x).code == INVALID_PARAM
    assert ops.refused("Transdata", nz(folded), transdataType=1).code == INVALID_TENSOR_DIM
