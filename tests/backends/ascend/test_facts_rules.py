"""What ATB does for every operation, whatever it computes: the order of its checks, rsv bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from opscase import (
    BF16,
    DIM_NUM,
    F16,
    F32,
    INTS,
    INVALID_PARAM,
    INVALID_TENSOR_DIM,
    NEEDS_COMPILER,
    NO_BF16,
    NOT_IN_TABLE,
    SIZE,
    WRONG_NUMBER,
    AtbError,
    Calc,
    Field,
    Given,
    Norm,
    Ops,
    host,
    plain_of,
    random,
)

pytestmark = NEEDS_COMPILER

LENGTH = torch.tensor([5], dtype=INTS)

PARAMS: dict[str, dict[str, Field]] = {
    "Linear": {}, "RmsNorm": {"layerType": Norm.NORM}, "LayerNorm": {"layerType": Norm.NORM},
    "Rope": {"rotaryCoeff": 2}, "SelfAttention": {"headNum": 4, "calcType": Calc.PA_ENCODER},
    "PagedAttention": {"headNum": 4}, "ReshapeAndCache": {}, "KvCache": {},
    "Elewise": {"elewiseType": 8}, "Activation": {"activationType": 4}, "Split": {},
    "Concat": {}, "Transpose": {"perm": (1, 0)}, "Slice": {"offsets": (0,), "size": (1,)},
    "Gather": {}, "Softmax": {"axes": (0,)}, "Transdata": {"transdataType": 2}}
"""Params that are right."""

INNER = [("RmsNorm", "normParam", {"layerType": Norm.NORM}),
         ("RmsNorm", "preNormParam", {"layerType": Norm.PRENORM}),
         ("RmsNorm", "postNormParam", {"layerType": Norm.POSTNORM}),
         ("LayerNorm", "normParam", {"layerType": Norm.NORM}),
         ("Elewise", "quantParam", {"elewiseType": 8}),
         ("Elewise", "mulsParam", {"elewiseType": 8})]


@pytest.fixture(params=["Ascend310P3", "Ascend310B1", "Ascend910A", "Ascend910ProB"])
def without_bf16(request: pytest.FixtureRequest, ops: Ops) -> Iterator[Ops]:
    ops.soc(request.param)
    yield ops
    ops.soc("Ascend910B")


def created(ops: Ops, name: str, fields: dict[str, Field]) -> AtbError | None:
    """None, or why the operation was not made."""
    try:
        ops.library.ops_destroy(ops.create(name, **fields))
    except AtbError as error:
        return error
    return None


@pytest.mark.parametrize("name", PARAMS)
def test_rsv_bytes_of_every_param_have_to_be_0(name: str, ops: Ops) -> None:
    assert created(ops, name, PARAMS[name]) is None
    error = created(ops, name, {**PARAMS[name], "rsv": 1})
    assert error
    assert (error.code, "rsv" in error.sentence) == (INVALID_PARAM, True)


@pytest.mark.parametrize(("name", "inner", "fields"), INNER)
def test_rsv_bytes_of_structs_in_params_have_to_be_0(name: str, inner: str,
                                                     fields: dict[str, Field],
                                                     ops: Ops) -> None:
    error = created(ops, name, {**fields, f"{inner}__rsv": 1})
    assert error
    assert (error.code, "rsv" in error.sentence) == (INVALID_PARAM, True)


def test_the_number_of_inputs_is_checked_before_their_dims(ops: Ops) -> None:
    empty = torch.zeros(0, dtype=F32)
    assert ops.refused("RmsNorm", empty, layerType=Norm.NORM).code == WRONG_NUMBER


def test_dims_are_checked_before_the_table(ops: Ops) -> None:
    """1 to 8, each greater than 0."""
    wide = torch.zeros(4, 0, dtype=F32)
    gamma = torch.zeros(32, dtype=F32)
    assert ops.refused("RmsNorm", wide, gamma, layerType=Norm.NORM).code == INVALID_TENSOR_DIM
    scalar = torch.zeros((), dtype=F32)
    assert ops.refused("RmsNorm", scalar, gamma, layerType=Norm.NORM).code == DIM_NUM


def test_sizes_are_checked_before_the_table(ops: Ops) -> None:
    """At most 256 GB; only the shape is there."""
    norm = ops.create("RmsNorm", layerType=Norm.NORM)
    huge = plain_of(torch.zeros(1, 1))
    huge.sizes[0], huge.sizes[1] = 1 << 20, 1 << 17
    try:
        with pytest.raises(AtbError) as caught:
            ops.shapes(norm, [huge, plain_of(torch.zeros(32))])
    finally:
        ops.library.ops_destroy(norm)
    assert caught.value.code == SIZE


def test_the_table_is_checked_before_what_the_operation_wants(ops: Ops) -> None:
    gamma = random(24, dtype=F32)
    error = ops.refused("RmsNorm", random(5, 24, dtype=F32), gamma, layerType=Norm.NORM)
    assert error.code == NOT_IN_TABLE
    error = ops.refused("RmsNorm", random(5, 24), gamma.half(), layerType=Norm.NORM)
    assert error.code == INVALID_TENSOR_DIM


def test_bf16_is_refused_where_the_chip_has_none(without_bf16: Ops) -> None:
    x = random(5, 32)
    without_bf16.infer("Concat", x, x)
    error = without_bf16.refused("Concat", x.to(BF16), x.to(BF16))
    assert (error.code, "bf16" in error.sentence) == (NO_BF16, True)


def test_the_table_is_checked_before_bf16(without_bf16: Ops) -> None:
    x = random(5, 32).to(BF16)
    error = without_bf16.refused("Rope", x, x, x.float(), x.float(), LENGTH, rotaryCoeff=2)
    assert error.code == NOT_IN_TABLE


def test_bf16_is_checked_before_what_the_operation_wants(without_bf16: Ops) -> None:
    x = random(5, 24).to(BF16)
    error = without_bf16.refused("RmsNorm", x, random(24).to(BF16), layerType=Norm.NORM)
    assert error.code == NO_BF16


@pytest.mark.parametrize("soc", ["Ascend910B1", "Ascend910B4", "Ascend910_9382"])
def test_a2_and_a3_take_bf16_and_caches_in_nd(soc: str, ops: Ops) -> None:
    ops.soc(soc)
    try:
        rows, cache = random(1, 2, 16, dtype=BF16), random(2, 16, 2, 16, dtype=BF16)
        ops("ReshapeAndCache", rows, rows.clone(), cache, cache.clone(),
            torch.tensor([3], dtype=INTS), in_place=(2, 3))
    finally:
        ops.soc("Ascend910B")


@pytest.mark.parametrize("without_bf16", ["Ascend310P3", "Ascend910A"], indirect=True)
def test_the_310p_and_the_910a_have_caches_in_nz(without_bf16: Ops) -> None:
    rows, cache = random(1, 2, 16), random(2, 16, 2, 16)
    slots = torch.tensor([3], dtype=INTS)
    error = without_bf16.refused("ReshapeAndCache", rows, rows, cache, cache, slots)
    assert (error.code, "takes f16 nz here" in error.sentence) == (NOT_IN_TABLE, True)
    tiles = Given(torch.zeros(2, 2, 16, 16, dtype=F16), format=29)
    assert len(without_bf16.infer("ReshapeAndCache", rows, rows, tiles, tiles, slots)) == 2


def test_values_of_lengths_are_read_at_setup_and_not_at_infer_shape(ops: Ops) -> None:
    """Lengths that do not sum up to the rows have right shapes, and are refused by Setup."""
    q = random(5, 64)
    fields = {"headNum": 4, "calcType": Calc.PA_ENCODER}
    assert ops.infer("SelfAttention", q, q, q, host([4]), **fields) == [(5, 64)]
    error = ops.refused("SelfAttention", q, q, q, host([4]), **fields)
    assert (error.code, "seqLen sums to 4" in error.sentence) == (INVALID_PARAM, True)


def test_split_is_in_2_or_3_parts(ops: Ops) -> None:
    for parts in (2, 3):
        assert len(ops.infer("Split", random(6, 12), splitNum=parts)) == parts
    for parts in (0, 1, 4):
        assert ops.refused("Split", random(4, 12), splitNum=parts).code == INVALID_PARAM


def test_uneven_splits_count_their_axis_from_0(ops: Ops) -> None:
    x = random(5, 12)
    assert ops.infer("Split", x, splitDim=-1) == [(5, 6), (5, 6)]
    assert ops.infer("Split", x, splitDim=1, splitSizes=(4, 8)) == [(5, 4), (5, 8)]
    error = ops.refused("Split", x, splitDim=-1, splitSizes=(4, 8))
    assert error.code == INVALID_PARAM
    error = ops.refused("Split", x, splitDim=1, splitNum=3, splitSizes=(4, 8))
    assert error.code == INVALID_PARAM


def test_concat_is_of_2(ops: Ops) -> None:
    x = random(5, 12)
    assert ops.infer("Concat", x, x, concatDim=1) == [(5, 24)]
    for many in ((x,), (x, x, x)):
        assert ops.refused("Concat", *many, concatDim=1).code == WRONG_NUMBER


def test_rms_norm_wants_multiples_of_32_bytes(ops: Ops) -> None:
    for dtype in (F16, BF16):
        ops.infer("RmsNorm", random(5, 48, dtype=dtype), random(48, dtype=dtype),
                  layerType=Norm.NORM)
        error = ops.refused("RmsNorm", random(5, 40, dtype=dtype), random(40, dtype=dtype),
                            layerType=Norm.NORM)
        assert (error.code, "32 bytes" in error.sentence) == (INVALID_TENSOR_DIM, True)


def test_gamma_has_leading_axes_of_1(ops: Ops) -> None:
    x = random(5, 48)
    for shape in ((48,), (1, 48), (1, 1, 48)):
        ops.infer("RmsNorm", x, random(*shape), layerType=Norm.NORM)
    error = ops.refused("RmsNorm", x, random(5, 48), layerType=Norm.NORM)
    assert error.code == INVALID_TENSOR_DIM


def test_epsilon_is_not_0(ops: Ops) -> None:
    for kind, inner in ((Norm.NORM, "normParam"), (Norm.PRENORM, "preNormParam"),
                        (Norm.POSTNORM, "postNormParam")):
        error = created(ops, "RmsNorm", {"layerType": kind, f"{inner}__epsilon": 0.0})
        assert error
        assert (error.code, "epsilon is 0" in error.sentence) == (INVALID_PARAM, True)


def test_pre_norm_gives_the_norm_and_the_sum(ops: Ops) -> None:
    x, residual, gamma = random(5, 48), random(5, 48, seed=3), random(48)
    y, total = ops("RmsNorm", x, residual, gamma, layerType=Norm.PRENORM)
    wide = x.double() + residual.double()
    assert float((total.double() - wide).abs().max()) < 2e-3
    alone, = ops("RmsNorm", total, gamma, layerType=Norm.NORM)
    assert float((alone.double() - y.double()).abs().max()) < 5e-3


def test_gemma_norms_have_1_plus_gamma(ops: Ops) -> None:
    x, gamma = random(5, 48), random(48)
    got, = ops("RmsNorm", x, gamma, layerType=Norm.NORM, normParam__modelType=1)
    want, = ops("RmsNorm", x, (gamma.float() + 1).half(), layerType=Norm.NORM)
    assert float((got.double() - want.double()).abs().max()) < 5e-3


def test_what_sums_into_f32_or_int8_is_refused(ops: Ops) -> None:
    """enAccum, outDataType and quantised norms: nothing here makes them."""
    assert created(ops, "Linear", {"enAccum": True})
    assert created(ops, "Linear", {"outDataType": 1})
    assert created(ops, "RmsNorm", {"layerType": Norm.NORM, "normParam__quantType": 2})
