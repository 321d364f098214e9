"""Paged caches and attention in the emulation: prefill by PA_ENCODER, decode by PagedAttention."""

from __future__ import annotations

import pytest
import torch
from maskcase import attention, causal, fold, heads_of, mask_of, triangle, unfold
from opscase import (
    BF16,
    COMPRESSED,
    DIM_NUM,
    F16,
    F32,
    INTS,
    INVALID_PARAM,
    INVALID_TENSOR_DIM,
    NEEDS_COMPILER,
    NOT_IN_TABLE,
    SIXTEEN,
    TENSOR_ADDR,
    Arg,
    Calc,
    Given,
    MaskType,
    Ops,
    close,
    host,
    nz,
    random,
)

pytestmark = NEEDS_COMPILER

ENCODER = {"calcType": Calc.PA_ENCODER, "headNum": 4, "kvHeadNum": 2, "qkScale": 0.25}


def three(rows: int, dtype: torch.dtype, dim: int = 24) -> tuple[torch.Tensor, ...]:
    """q of 4 heads, k and v of 2."""
    return (heads_of(rows, 4, dim, dtype), heads_of(rows, 2, dim, dtype, 1),
            heads_of(rows, 2, dim, dtype, 2))


def check(got: torch.Tensor, tensors: tuple[torch.Tensor, ...], lengths: tuple[int, ...],
          hidden: torch.Tensor | None) -> None:
    first = 0
    for length in lengths:
        q, k, v = (t[first:first + length] for t in tensors)
        added = None if hidden is None else hidden[:length, :length]
        close(got[first:first + length], attention(q, k, v, 0.25, added))
        first += length


@SIXTEEN
def test_pa_encoder_with_the_compressed_mask(ops: Ops, dtype: torch.dtype) -> None:
    tensors = three(8, dtype)
    got, = ops("SelfAttention", *tensors, triangle(dtype), host([3, 5]), **ENCODER, **COMPRESSED)
    check(got, tensors, (3, 5), causal(8))


def test_pa_encoder_of_more_tokens_than_the_compressed_mask(ops: Ops) -> None:
    tensors = three(131, F16)
    got, = ops("SelfAttention", *tensors, triangle(F16), host([131]), **ENCODER, **COMPRESSED)
    check(got, tensors, (131,), causal(131))


@SIXTEEN
@pytest.mark.parametrize("shape", ["plain", "sequences", "heads"])
def test_pa_encoder_with_a_mask_that_is_added(ops: Ops, dtype: torch.dtype, shape: str) -> None:
    tensors, hidden = three(8, dtype), causal(9)
    mask = mask_of(hidden, dtype)
    if shape == "sequences":
        mask = mask.repeat(2, 1, 1)
    if shape == "heads":
        mask = mask.repeat(2, 4, 1, 1)
    for fields in ({}, {"isTriuMask": 1}):
        got, = ops("SelfAttention", *tensors, mask, host([3, 5]), **ENCODER,
                   maskType=MaskType.NORM, **fields)
        check(got, tensors, (3, 5), hidden)


def test_pa_encoder_gives_the_rank_of_query(ops: Ops) -> None:
    tensors = three(8, F16)
    flat = [t.flatten(1) for t in tensors]
    got, = ops("SelfAttention", *flat, host([3, 5]), **ENCODER)
    assert got.shape == (8, 96)
    check(got.reshape(8, 4, 24), tensors, (3, 5), None)


def test_pa_encoder_does_not_touch_the_cache(ops: Ops) -> None:
    """It has no inputs for one: four where there is no mask, five with one."""
    tensors = three(3, F16)
    error = ops.refused("SelfAttention", *tensors, random(2, 4, 2, 24), host([3]), **ENCODER)
    assert error.code == 5


def test_pa_encoder_with_lengths_of_keys_of_their_own(ops: Ops) -> None:
    """seqLen [2, sequences] has the queries, then the keys; the mask is seen from its first row."""
    q = heads_of(5, 4, 24, F16)
    k, v = heads_of(9, 2, 24, F16, 1), heads_of(9, 2, 24, F16, 2)
    mask = random(3, 7)
    got, = ops("SelfAttention", q, k, v, mask, host([[2, 3], [7, 2]]), **ENCODER,
               maskType=MaskType.NORM)
    close(got[:2], attention(q[:2], k[:7], v[:7], 0.25, mask[:2, :7]))
    close(got[2:], attention(q[2:], k[7:], v[7:], 0.25, mask[:3, :2]))


def test_f16_mask_is_added_as_it_is(ops: Ops) -> None:
    tensors, bias = three(4, F16), random(4, 4)
    got, = ops("SelfAttention", *tensors, bias, host([4]), **ENCODER, maskType=MaskType.NORM)
    close(got, attention(*tensors, 0.25, bias))


def test_bf16_mask_value_is_1_times_minus_3e38(ops: Ops) -> None:
    """The f16 values in bf16 would become +infinity, so they are refused; 1 hides."""
    tensors = three(4, BF16)
    error = ops.refused("SelfAttention", *tensors, causal(4).to(BF16), host([4]), **ENCODER,
                        maskType=MaskType.NORM)
    assert error.code == INVALID_PARAM
    assert "wanted 0 or 1, as bf16 masks are times -3e38" in error.sentence
    half = torch.zeros(4, 4, dtype=BF16)
    half[:, 3] = 1
    got, = ops("SelfAttention", *tensors, half, host([4]), **ENCODER, maskType=MaskType.NORM)
    q, k, v = tensors
    close(got, attention(q, k[:3], v[:3], 0.25))


def test_compressed_mask_has_to_be_the_triangle(ops: Ops) -> None:
    tensors = three(4, F16)
    for row, column, value in ((5, 5, -10000.0), (7, 3, 1.0), (3, 4, 0.0), (3, 4, 1.0)):
        mask = triangle(F16)
        mask[row, column] = value
        error = ops.refused("SelfAttention", *tensors, mask, host([4]), **ENCODER, **COMPRESSED)
        assert error.code == INVALID_PARAM
        assert f"at row {row}, column {column}, wanted" in error.sentence
    wrong = ops.refused("SelfAttention", *tensors, causal(4).half(), host([4]), **ENCODER,
                        **COMPRESSED)
    assert (wrong.code, "[128, 128]" in wrong.sentence) == (INVALID_TENSOR_DIM, True)


def test_triu_mask_skips_what_is_above_the_diagonal(ops: Ops) -> None:
    """So a mask that shows a key there is refused with isTriuMask, not with 0."""
    tensors, mask = three(4, F16), causal(4).half()
    mask[1, 2] = 0
    ops("SelfAttention", *tensors, mask, host([4]), **ENCODER, maskType=MaskType.NORM)
    error = ops.refused("SelfAttention", *tensors, mask, host([4]), **ENCODER,
                        maskType=MaskType.NORM, isTriuMask=1)
    assert "row 1, column 2, wanted -10000 or less" in error.sentence


@pytest.mark.parametrize(("fields", "words"), [
    ({"headNum": 0}, "headNum is 0"),
    ({"kvHeadNum": 3}, "a multiple of kvHeadNum 3"),
    ({"isTriuMask": 1}, "wants a mask"),
    ({"maskType": MaskType.NORM_COMPRESS}, "wants isTriuMask 1"),
    ({"maskType": MaskType.ALIBI}, "maskType is 2"),
    ({"windowSize": 4}, "windowSize is 4"),
    ({"maskType": 7}, "windowSize is 0"),
    ({"kvcacheCfg": 1}, "K_BYPASS_V_BYPASS, which calcType PA_ENCODER"),
    ({"calcType": Calc.PREFIX_ENCODER}, "PREFIX_ENCODER"),
    ({"quantType": 1}, "int8"),
    ({"batchRunStatusEnable": True}, "keep their defaults"),
    ({"calcType": Calc.UNDEFINED, "maskType": MaskType.NORM_COMPRESS}, "wants calcType PA_ENCODER"),
    ({"rsv": 1}, "rsv has bytes that are not 0"),
])
def test_self_attention_params_refused(ops: Ops, fields: dict[str, int], words: str) -> None:
    error = ops.refused("SelfAttention", *three(4, F16), host([4]), **{**ENCODER, **fields})
    assert error.code == INVALID_PARAM
    assert words in error.sentence


def test_pa_encoder_refuses(ops: Ops) -> None:
    q, k, v = three(4, F16)
    length = host([4])
    cases: list[tuple[tuple[Arg, ...], int]] = [
        ((q, k.flatten(1), v, length), DIM_NUM), ((q, q, v, length), INVALID_TENSOR_DIM),
        ((q, k, v[:3].clone(), length), INVALID_TENSOR_DIM),
        ((q.float(), k.float(), v.float(), length), NOT_IN_TABLE),
        ((q, k, v, host([3])), INVALID_PARAM), ((q, k, v, host([4, 0])), INVALID_PARAM),
        ((q, k, v, torch.tensor([4], dtype=INTS)), TENSOR_ADDR),
        ((q[:, :3].clone(), k, v, length), INVALID_TENSOR_DIM),
    ]
    for inputs, code in cases:
        assert ops.refused("SelfAttention", *inputs, **ENCODER).code == code
    small = ops.refused("SelfAttention", q, k, v, causal(3).half(), length, **ENCODER,
                        maskType=MaskType.NORM)
    assert "at least 4 rows and 4 columns" in small.sentence


def test_310p_pa_encoder_takes_the_fractal_mask(small_soc: Ops) -> None:
    tensors = three(20, F16)
    mask = triangle(F16, fractal=True)
    assert mask.shape == (1, 8, 128, 16)
    got, = small_soc("SelfAttention", *tensors, nz(mask), host([20]), **ENCODER, **COMPRESSED)
    check(got, tensors, (20,), causal(20))


def caches(dtype: torch.dtype, blocks: int = 5, block: int = 16, dim: int = 24,
           ) -> tuple[torch.Tensor, torch.Tensor]:
    nan = torch.full((blocks, block, 2, dim), float("nan")).to(dtype)
    return nan, nan.clone()


def write(ops: Ops, k: torch.Tensor, v: torch.Tensor, keys: Arg, values: Arg,
          slots: torch.Tensor, **fields: int) -> None:
    ops("ReshapeAndCache", k, v, keys, values, slots, in_place=(2, 3), **fields)


@SIXTEEN
def test_reshape_and_cache_skips_negative_slots(ops: Ops, dtype: torch.dtype) -> None:
    """A slot is blockId * blockSize + offset."""
    (keys, values), (_, k, v) = caches(dtype), three(3, dtype)
    write(ops, k, v, keys, values, torch.tensor([17, -1, 63], dtype=INTS))
    assert torch.equal(keys[1, 1], k[0])
    assert torch.equal(values[3, 15], v[2])
    assert int(keys.isfinite().sum()) == 2 * k[0].numel()


@pytest.mark.parametrize(("slots", "words"), [
    ([0, 80, 1], "slots[1] is 80, the cache has 80"),
    ([7, 3, 7], "slots[0] and slots[2] are both 7"),
])
def test_slots_that_are_not_there_or_twice(ops: Ops, slots: list[int], words: str) -> None:
    (keys, values), (_, k, v) = caches(F16), three(3, F16)
    error = ops.refused("ReshapeAndCache", k, v, keys, values, torch.tensor(slots, dtype=INTS))
    assert error.code in (INVALID_PARAM, TENSOR_ADDR)
    with pytest.raises(Exception, match=words.replace("[", r"\[").replace("]", r"\]")):
        write(ops, k, v, keys, values, torch.tensor(slots, dtype=INTS))
    assert not keys.isfinite().any()


def test_reshape_and_cache_in_nz(ops: Ops, small_soc: Ops) -> None:
    _, k, v = three(3, F16)
    keys, values = (fold(cache) for cache in caches(F16))
    write(small_soc, k, v, nz(keys), nz(values), torch.tensor([17, -1, 63], dtype=INTS))
    assert torch.equal(unfold(keys, 2)[1, 1], k[0])
    assert torch.equal(unfold(values, 2)[3, 15], v[2])
    ops.soc("Ascend910B")
    error = ops.refused("ReshapeAndCache", k, v, nz(keys), nz(values), torch.zeros(3, dtype=INTS))
    assert error.code == NOT_IN_TABLE
    write(ops, k, v, nz(keys), nz(values), torch.tensor([1, 2, 3], dtype=INTS), kvCacheCfg=2)
    assert torch.equal(unfold(keys, 2)[0, 3], k[2])


def test_reshape_and_cache_refuses(ops: Ops) -> None:
    (keys, values), (_, k, v) = caches(F16), three(3, F16)
    slots = torch.zeros(3, dtype=INTS)
    cases: list[tuple[tuple[Arg, ...], int]] = [
        ((k.flatten(1), v, keys, values, slots), DIM_NUM),
        ((k, v, keys[..., :23].clone(), values, slots), INVALID_TENSOR_DIM),
        ((k, v, keys, values[:4].clone(), slots), INVALID_TENSOR_DIM),
        ((k, v, keys, values, slots[:2].clone()), INVALID_TENSOR_DIM),
        ((k.float(), v, keys, values, slots), NOT_IN_TABLE),
    ]
    for inputs, code in cases:
        assert ops.refused("ReshapeAndCache", *inputs).code == code
    for fields in ({"compressType": 1}, {"kvCacheCfg": 1}):
        error = ops.refused("ReshapeAndCache", k, v, keys, values, slots, **fields)
        assert error.code == INVALID_PARAM


PAGED = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25}
TABLE = [[2, 4, 99], [0, -1, -1], [3, 1, 2]]
CONTEXTS = [20, 1, 48]


def filled(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return random(5, 16, 2, 24, dtype=dtype), random(5, 16, 2, 24, dtype=dtype, seed=4)


def check_paged(got: torch.Tensor, q: torch.Tensor, keys: torch.Tensor,
                values: torch.Tensor) -> None:
    for row, (blocks, length) in enumerate(zip(TABLE, CONTEXTS, strict=True)):
        used = blocks[:-(-length // 16)]
        k, v = (cache[used].flatten(0, 1)[:length] for cache in (keys, values))
        close(got[row:row + 1], attention(q[row:row + 1], k, v, 0.25))


@SIXTEEN
def test_paged_attention(ops: Ops, dtype: torch.dtype) -> None:
    """Every row is a query; blocks behind its context are not looked at."""
    q, (keys, values) = heads_of(3, 4, 24, dtype), filled(dtype)
    table = torch.tensor(TABLE, dtype=INTS)
    got, = ops("PagedAttention", q, keys, values, table, host(CONTEXTS), **PAGED)
    check_paged(got, q, keys, values)


def test_310p_paged_attention_has_nz_caches_and_contexts_on_both_sides(small_soc: Ops) -> None:
    q, (keys, values) = heads_of(3, 4, 24, F16), filled(F16)
    table, contexts = torch.tensor(TABLE, dtype=INTS), torch.tensor(CONTEXTS, dtype=INTS)
    folded = nz(fold(keys)), nz(fold(values))
    got, = small_soc("PagedAttention", q, *folded, table, Given(contexts, host=True), **PAGED)
    check_paged(got, q, keys, values)
    error = small_soc.refused("PagedAttention", q, *folded, table, host(CONTEXTS), **PAGED)
    assert error.code == TENSOR_ADDR
    error = small_soc.refused("PagedAttention", q, keys, values, table, host(CONTEXTS), **PAGED)
    assert error.code == NOT_IN_TABLE


@pytest.mark.parametrize(("context", "table", "words"), [
    ([20, 0, 48], TABLE, "contextLens[1] is 0, wanted 1 to 48"),
    ([20, 1, 49], TABLE, "contextLens[2] is 49, wanted 1 to 48"),
    ([33, 1, 48], TABLE, "blockTables[0, 2] is 99, the cache has 5 blocks"),
    ([20, 17, 48], TABLE, "blockTables[1, 1] is -1"),
])
def test_paged_attention_refuses_values(ops: Ops, context: list[int], table: list[list[int]],
                                        words: str) -> None:
    q, (keys, values) = heads_of(3, 4, 24, F16), filled(F16)
    error = ops.refused("PagedAttention", q, keys, values, torch.tensor(table, dtype=INTS),
                        host(context), **PAGED)
    assert error.code == INVALID_PARAM
    assert words in error.sentence


def test_paged_attention_needs_contexts_on_the_host(ops: Ops) -> None:
    q, (keys, values) = heads_of(3, 4, 24, F16), filled(F16)
    error = ops.refused("PagedAttention", q, keys, values, torch.tensor(TABLE, dtype=INTS),
                        torch.tensor(CONTEXTS, dtype=INTS), **PAGED)
    assert (error.code, "hostData is null" in error.sentence) == (TENSOR_ADDR, True)


@pytest.mark.parametrize(("dim", "block", "fits"), [
    (576, 128, True), (592, 16, False), (272, 128, True), (272, 144, False), (256, 144, True)])
def test_paged_attention_limits(ops: Ops, dim: int, block: int, fits: bool) -> None:
    """Heads of at most 576, and blocks of at most 128 for those of more than 256."""
    q, cache = random(1, 1, dim), random(1, block, 1, dim)
    inputs = (q, cache, cache.clone(), torch.zeros(1, 1, dtype=INTS), host([3]))
    if fits:
        ops("PagedAttention", *inputs, headNum=1)
    else:
        assert ops.refused("PagedAttention", *inputs, headNum=1).code == INVALID_TENSOR_DIM


def test_paged_attention_refuses(ops: Ops) -> None:
    q, (keys, values) = heads_of(3, 4, 24, F16), filled(F16)
    table = torch.tensor(TABLE, dtype=INTS)
    rest = (keys, values, table, host(CONTEXTS))
    assert ops.refused("PagedAttention", q.flatten(1), *rest, **PAGED).code == DIM_NUM
    error = ops.refused("PagedAttention", q, *rest, headNum=2)
    assert "wanted 2 heads, as headNum says" in error.sentence
    wide = q.to(F32), keys.to(F32), values.to(F32), table, host(CONTEXTS)
    assert ops.refused("PagedAttention", *wide, **PAGED).code == NOT_IN_TABLE
    for fields in ({"headNum": 0}, {"kvHeadNum": 3}, {"maskType": 1}, {"quantType": 1},
                   {"calcType": 1}, {"rsv": 1}):
        assert ops.refused("PagedAttention", q, *rest, **{**PAGED, **fields}).code == INVALID_PARAM
