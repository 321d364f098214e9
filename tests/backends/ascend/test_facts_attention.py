"""Attention, layouts of its caches and orders of its inputs are those that ATB has."""

from __future__ import annotations

import pytest
import torch
from maskcase import attention, causal, fold, three, triangle
from opscase import (
    COMPRESSED,
    DIM_NUM,
    F16,
    F32,
    INTS,
    INVALID_PARAM,
    INVALID_TENSOR_DIM,
    NEEDS_COMPILER,
    NOT_IN_TABLE,
    TENSOR_ADDR,
    WRONG_NUMBER,
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

HEADS = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25}
PREFILL = {**HEADS, "calcType": Calc.PA_ENCODER}


def flat(rows: int, dim: int = 16) -> list[torch.Tensor]:
    return [each.flatten(1) for each in three(rows, F16, dim)]



@pytest.mark.parametrize("axes", [2, 3])
def test_pa_encoder_takes_q_k_and_v_of_2_or_3_axes(ops: Ops, axes: int) -> None:
    given = three(5) if axes == 3 else flat(5)
    assert ops.infer("SelfAttention", *given, host([5]), **PREFILL) == [given[0].shape]
    mixed = (given[0], *(three(5) if axes == 2 else flat(5))[1:])
    assert ops.refused("SelfAttention", *mixed, host([5]), **PREFILL).code == DIM_NUM
    deep = tuple(each[None] for each in three(5))
    assert ops.refused("SelfAttention", *deep, host([5]), **PREFILL).code == DIM_NUM


@pytest.mark.parametrize("axes", [2, 3])
def test_pa_encoder_gives_the_rank_of_q(ops: Ops, axes: int) -> None:
    given = three(5) if axes == 3 else flat(5)
    got, = ops("SelfAttention", *given, host([5]), **PREFILL)
    assert got.dim() == axes


def test_pa_encoder_has_its_mask_at_3_and_its_lengths_behind(ops: Ops) -> None:
    """Without a mask the lengths move up to 3."""
    tensors, lengths = three(5), host([5])
    ops("SelfAttention", *tensors, triangle(F16), lengths, **PREFILL, **COMPRESSED)
    ops("SelfAttention", *tensors, lengths, **PREFILL)
    swapped = ops.refused("SelfAttention", *tensors, lengths, triangle(F16), **PREFILL,
                          **COMPRESSED)
    assert swapped.code == NOT_IN_TABLE
    assert "input 3 (mask)" in swapped.sentence
    missing = ops.refused("SelfAttention", *tensors, lengths, **PREFILL, **COMPRESSED)
    assert missing.code == WRONG_NUMBER


@pytest.mark.parametrize("lengths", [[2, 3], [[2, 3], [2, 3]]], ids=["B", "2_B"])
def test_pa_encoder_takes_lengths_b_or_2_b(ops: Ops, lengths: list[int]) -> None:
    got, = ops("SelfAttention", *three(5), triangle(F16), host(lengths), **PREFILL, **COMPRESSED)
    q, k, v = three(5)
    close(got[:2], attention(q[:2], k[:2], v[:2], 0.25, causal(2)))
    close(got[2:], attention(q[2:], k[2:], v[2:], 0.25, causal(3)))
    wrong = host([[2, 3], [2, 3], [2, 3]])
    assert ops.refused("SelfAttention", *three(5), wrong, **PREFILL).code == INVALID_TENSOR_DIM


def test_pa_encoder_wants_lengths_on_the_host(ops: Ops) -> None:
    error = ops.refused("SelfAttention", *three(5), torch.tensor([5], dtype=INTS), **PREFILL)
    assert (error.code, "hostData is null" in error.sentence) == (TENSOR_ADDR, True)


def test_pa_encoder_has_no_cache(ops: Ops) -> None:
    """K_BYPASS_V_BYPASS is illegal, and there is no input for a cache."""
    error = ops.refused("SelfAttention", *three(5), host([5]), **PREFILL, kvcacheCfg=1)
    assert (error.code, "K_BYPASS_V_BYPASS" in error.sentence) == (INVALID_PARAM, True)
    cache = random(1, 1, 8, 32)
    error = ops.refused("SelfAttention", *three(5), cache, cache, host([5]), **PREFILL)
    assert error.code == WRONG_NUMBER


def test_prefix_encoder_is_refused(ops: Ops) -> None:
    error = ops.refused("SelfAttention", *three(5), host([5]), **{**PREFILL, "calcType":
                                                               Calc.PREFIX_ENCODER})
    assert (error.code, "PREFIX_ENCODER" in error.sentence) == (INVALID_PARAM, True)



def decode(dim: int = 16, block: int = 16) -> tuple[Arg, ...]:
    """3 blocks; the one query sees 20 slots of blocks 2 and 0."""
    return (random(1, 4, dim), random(3, block, 2, dim), random(3, block, 2, dim, seed=4),
            torch.tensor([[2, 0]], dtype=INTS), host([20]))


def test_paged_attention_takes_q_of_3_axes_alone(ops: Ops) -> None:
    q, *rest = decode()
    assert isinstance(q, torch.Tensor)
    assert ops.infer("PagedAttention", q, *rest, **HEADS) == [(1, 4, 16)]
    assert ops.refused("PagedAttention", q.flatten(1), *rest, **HEADS).code == DIM_NUM


def test_paged_caches_of_a_910b_are_blocks_block_size_heads_dim(ops: Ops) -> None:
    q, keys, values, table, contexts = decode()
    assert isinstance(q, torch.Tensor)
    assert isinstance(keys, torch.Tensor)
    assert isinstance(values, torch.Tensor)
    got, = ops("PagedAttention", q, keys, values, table, contexts, **HEADS)
    k, v = (torch.cat([cache[2], cache[0, :4]]) for cache in (keys, values))
    close(got, attention(q, k, v, 0.25))
    turned = keys.transpose(1, 2).contiguous()
    error = ops.refused("PagedAttention", q, turned, turned, table, contexts, **HEADS)
    assert error.code == INVALID_TENSOR_DIM


def test_paged_caches_of_a_310p_are_blocks_columns_by_16_block_size_16(small_soc: Ops) -> None:
    q, keys, values, table, _ = decode()
    assert isinstance(q, torch.Tensor)
    assert isinstance(keys, torch.Tensor)
    assert isinstance(values, torch.Tensor)
    tiles = [fold(cache) for cache in (keys, values)]
    assert tiles[0].shape == (3, 2 * 16 // 16, 16, 16)
    both = Given(torch.tensor([20], dtype=INTS), host=True)
    got, = small_soc("PagedAttention", q, *map(nz, tiles), table, both, **HEADS)
    k, v = (torch.cat([cache[2], cache[0, :4]]) for cache in (keys, values))
    close(got, attention(q, k, v, 0.25))


def test_a_slot_is_block_id_times_block_size_plus_offset(ops: Ops) -> None:
    """What is appended at slot 2 * 16 + 3 is key 3 of a sequence whose first block is 2."""
    keys, values = torch.zeros(3, 16, 1, 16, dtype=F16), torch.zeros(3, 16, 1, 16, dtype=F16)
    k, v = random(1, 1, 16), random(1, 1, 16, seed=3)
    ops("ReshapeAndCache", k, v, keys, values, torch.tensor([2 * 16 + 3], dtype=INTS),
        in_place=(2, 3))
    assert torch.equal(keys[2, 3], k[0])
    got, = ops("PagedAttention", k * 100, keys, values, torch.tensor([[2]], dtype=INTS), host([4]),
               headNum=1)
    close(got[0], v[0].double())


@pytest.mark.parametrize(("dim", "block", "fits"), [(576, 128, True), (592, 16, False)])
def test_heads_of_paged_attention_have_at_most_576(ops: Ops, dim: int, block: int,
                                                   fits: bool) -> None:
    if fits:
        ops.infer("PagedAttention", *decode(dim, block), **HEADS)
    else:
        error = ops.refused("PagedAttention", *decode(dim, block), **HEADS)
        assert (error.code, "at most 576" in error.sentence) == (INVALID_TENSOR_DIM, True)


@pytest.mark.parametrize(("dim", "block", "fits"), [(257, 128, True), (257, 129, False),
                                                    (256, 129, True)])
def test_heads_above_256_want_blocks_of_at_most_128(ops: Ops, dim: int, block: int,
                                                    fits: bool) -> None:
    if fits:
        ops.infer("PagedAttention", *decode(dim, block), **HEADS)
    else:
        error = ops.refused("PagedAttention", *decode(dim, block), **HEADS)
        assert (error.code, "at most 128" in error.sentence) == (INVALID_TENSOR_DIM, True)


def test_paged_attention_wants_contexts_on_the_host(ops: Ops) -> None:
    *rest, _ = decode()
    error = ops.refused("PagedAttention", *rest, torch.tensor([20], dtype=INTS), **HEADS)
    assert (error.code, "hostData is null" in error.sentence) == (TENSOR_ADDR, True)


def test_the_310p_wants_contexts_on_the_device_too(small_soc: Ops) -> None:
    q, keys, values, table, contexts = decode()
    assert isinstance(keys, torch.Tensor)
    assert isinstance(values, torch.Tensor)
    error = small_soc.refused("PagedAttention", q, nz(fold(keys)), nz(fold(values)), table,
                              contexts, **HEADS)
    assert (error.code, "deviceData is null" in error.sentence) == (TENSOR_ADDR, True)


@pytest.mark.parametrize("fields", [
    {"quantType": 1}, {"quantType": 2}, {"calcType": 1}, {"maskType": 3}], ids=str)
def test_paged_attention_of_int8_and_speculation_is_refused(ops: Ops,
                                                            fields: dict[str, int]) -> None:
    assert ops.refused("PagedAttention", *decode(), **HEADS, **fields).code == INVALID_PARAM


def test_reshape_and_cache_skips_slots_below_0(ops: Ops) -> None:
    keys, values = torch.zeros(3, 16, 2, 16, dtype=F16), torch.zeros(3, 16, 2, 16, dtype=F16)
    _, k, v = three(2)
    ops("ReshapeAndCache", k, v, keys, values, torch.tensor([-1, 17], dtype=INTS),
        in_place=(2, 3))
    assert torch.equal(keys[1, 1], k[1])
    assert int(keys.count_nonzero()) == int(k[1].count_nonzero())


OFFSETS, LENGTHS, LAYER = host([7, 3]), host([2, 3]), torch.tensor([1], dtype=INTS)


def kept(hidden: int = 32, slots: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """[layers, sequences, slots, hidden]."""
    return random(2, 2, slots, hidden), random(2, 2, slots, hidden, seed=4)


def test_fa_caches_are_layer_batch_slots_columns(ops: Ops) -> None:
    keys, values = kept()
    rest = (OFFSETS, LENGTHS, LAYER)
    ops.infer("SelfAttention", *flat(5), keys, values, *rest, **HEADS)
    for wrong in (keys[0], keys.reshape(2, 2, 9, 2, 16)):
        error = ops.refused("SelfAttention", *flat(5), wrong, values, *rest, **HEADS)
        assert error.code == DIM_NUM


def test_fa_caches_of_a_310p_have_5_axes(small_soc: Ops) -> None:
    """[layer, batch, columns / 16, slots, 16]."""
    tiles = nz(torch.zeros(2, 2, 2, 16, 16, dtype=F16))
    rest = (OFFSETS, LENGTHS, LAYER)
    assert small_soc.infer("SelfAttention", *flat(5), tiles, tiles, *rest, **HEADS) == [(5, 64)]
    error = small_soc.refused("SelfAttention", *flat(5), *kept(slots=16), *rest, **HEADS)
    assert error.code == NOT_IN_TABLE


def test_fa_takes_q_k_and_v_of_2_or_4_axes(ops: Ops) -> None:
    rest = (*kept(), OFFSETS, host([3, 3]), LAYER)
    ops.infer("SelfAttention", *flat(6), *rest, **HEADS)
    deep = [each.reshape(2, 3, -1, 16) for each in three(6)]
    ops.infer("SelfAttention", *deep, *rest, **HEADS)
    assert ops.refused("SelfAttention", *three(6), *rest, **HEADS).code == DIM_NUM


def test_fa_of_q_with_4_axes_gives_3(ops: Ops) -> None:
    deep = [each.reshape(2, 3, -1, 16) for each in three(6)]
    made = ops.infer("SelfAttention", *deep, *kept(), OFFSETS, host([3, 3]), LAYER, **HEADS)
    assert made == [(2, 3, 4 * 16)]


@pytest.mark.parametrize("calc", [Calc.UNDEFINED, Calc.ENCODER, Calc.DECODER])
def test_fa_writes_new_rows_at_token_offset_minus_seq_len(ops: Ops, calc: Calc) -> None:
    """tokenOffset is past + new: one new row with 4 before it lands in slot 4."""
    keys, values = kept()
    q, k, v = flat(2)
    want = keys.clone()
    want[1, 0, 4], want[1, 1, 0] = k[0], k[1]
    ops("SelfAttention", q, k, v, keys, values, host([5, 1]), host([1, 1]), LAYER, **HEADS,
        calcType=calc)
    assert torch.equal(keys, want)


def test_token_offset_is_past_plus_new(ops: Ops) -> None:
    """The new key is seen; an offset that leaves the new token out is refused."""
    keys, values = kept()
    q, k, v = flat(1)
    one = (keys[:, :1].clone(), values[:, :1].clone())
    got, = ops("SelfAttention", q * 50, q[:, :32] * 50, v, *one, host([5]), host([1]), LAYER,
               headNum=4, kvHeadNum=2)
    before = torch.cat([one[0][1, 0, :4], q[:, :32] * 50]).reshape(5, 2, 16)
    seen = torch.cat([one[1][1, 0, :4], v]).reshape(5, 2, 16)
    close(got.reshape(1, 4, 16), attention((q * 50).reshape(1, 4, 16), before, seen, 1.0))
    error = ops.refused("SelfAttention", q, k, v, *one, host([0]), host([1]), LAYER, **HEADS)
    assert "it is past + new" in error.sentence


def test_seq_len_counts_new_tokens_alone(ops: Ops) -> None:
    error = ops.refused("SelfAttention", *flat(5), *kept(), OFFSETS, host([7, 3]), LAYER, **HEADS)
    assert (error.code, "the new tokens" in error.sentence) == (INVALID_PARAM, True)


def test_fa_has_its_mask_at_5_and_the_rest_behind(ops: Ops) -> None:
    mask, rest = torch.zeros(2, 3, 9, dtype=F16), (OFFSETS, LENGTHS, LAYER)
    ops("SelfAttention", *flat(5), *kept(), mask, *rest, **HEADS, maskType=MaskType.NORM)
    ops("SelfAttention", *flat(5), *kept(), *rest, **HEADS)
    q, k, v = flat(5)
    error = ops.refused("SelfAttention", q, k, v, mask, *kept(), *rest, **HEADS,
                        maskType=MaskType.NORM)
    assert error.code in (DIM_NUM, INVALID_TENSOR_DIM)


def test_fa_bypass_has_no_k_and_v_and_its_mask_at_3(ops: Ops) -> None:
    keys, values = kept()
    before = keys.clone()
    mask, rest = torch.zeros(2, 3, 9, dtype=F16), (OFFSETS, LENGTHS, LAYER)
    bypass = {**HEADS, "kvcacheCfg": 1}
    ops("SelfAttention", flat(5)[0], keys, values, mask, *rest, **bypass, maskType=MaskType.NORM)
    ops("SelfAttention", flat(5)[0], keys, values, *rest, **bypass)
    assert torch.equal(keys, before)
    error = ops.refused("SelfAttention", *flat(5), keys, values, *rest, **bypass)
    assert error.code == WRONG_NUMBER


@pytest.mark.parametrize(("heads", "dim"), [(2, 4), (4, 6)])
def test_hidden_sizes_of_fa_are_multiples_of_16(ops: Ops, heads: int, dim: int) -> None:
    wide = heads * dim
    error = ops.refused("SelfAttention", *(random(5, wide) for _ in range(3)),
                        random(2, 2, 9, wide), random(2, 2, 9, wide), OFFSETS, LENGTHS, LAYER,
                        headNum=heads)
    assert (error.code, "multiples of 16" in error.sentence) == (INVALID_TENSOR_DIM, True)


def test_a_cache_of_one_layer_has_layer_id_0(ops: Ops) -> None:
    """[sequences, slots, hidden] seen as [1, sequences, slots, hidden]."""
    one = [cache[1][None].clone() for cache in kept()]
    q, k, v = flat(5)
    zero = torch.zeros(1, dtype=INTS)
    got, = ops("SelfAttention", q, k, v, *one, OFFSETS, LENGTHS, zero, **HEADS)
    want, = ops("SelfAttention", q, k, v, *kept(), OFFSETS, LENGTHS, LAYER, **HEADS)
    assert torch.equal(got, want)
    error = ops.refused("SelfAttention", q, k, v, *one, OFFSETS, LENGTHS, LAYER, **HEADS)
    assert (error.code, "layerId is 1" in error.sentence) == (INVALID_PARAM, True)


def test_fa_takes_lengths_that_are_on_the_host_alone(ops: Ops) -> None:
    assert not OFFSETS.device
    assert not LENGTHS.device
    ops("SelfAttention", *flat(5), *kept(), OFFSETS, LENGTHS, LAYER, **HEADS)


@pytest.mark.parametrize("which", ["tokenOffset", "seqLen"])
def test_fa_wants_lengths_on_the_host(ops: Ops, which: str) -> None:
    device = torch.tensor([7, 3], dtype=INTS)
    ends = (device, LENGTHS) if which == "tokenOffset" else (OFFSETS, device)
    error = ops.refused("SelfAttention", *flat(5), *kept(), *ends, LAYER, **HEADS)
    assert (error.code, f"({which}) i32[2]: hostData" in error.sentence) == (TENSOR_ADDR, True)


def test_kv_cache_has_no_outputs_and_writes_past(ops: Ops) -> None:
    past, rows = torch.zeros(2, 2, 9, 32, dtype=F16), random(5, 32)
    lengths = torch.tensor([2, 3], dtype=INTS)
    made = ops("KvCache", rows, LAYER, past, torch.tensor([7, 3], dtype=INTS), lengths)
    assert made == ()
    assert torch.equal(past[1, 0, 5:7], rows[:2])
    assert torch.equal(past[1, 1, :3], rows[2:])



@pytest.mark.parametrize(("fields", "words"), [
    ({"headNum": 0}, "headNum is 0"),
    ({"headNum": -4}, "headNum is -4"),
    ({"kvHeadNum": 3}, "a multiple of kvHeadNum 3"),
    ({"isTriuMask": 1}, "wants a mask"),
    ({"maskType": 4}, "maskType is 4"),
    ({"maskType": 5}, "maskType is 5"),
    ({"maskType": 6}, "maskType is 6"),
    ({"windowSize": 128}, "windowSize is 128"),
    ({"maskType": 7}, "windowSize is 0"),
    ({"maskType": 8}, "windowSize is 0"),
    ({"maskType": MaskType.NORM, "windowSize": 8}, "windowSize is 8")])
@pytest.mark.parametrize("calc", [Calc.PA_ENCODER, Calc.UNDEFINED])
def test_rules_of_the_param(ops: Ops, calc: Calc, fields: dict[str, int], words: str) -> None:
    given = {**HEADS, "calcType": calc, **fields}
    error = ops.refused("SelfAttention", *three(5), host([5]), **given)
    assert (error.code, words in error.sentence) == (INVALID_PARAM, True)


def test_kv_head_num_0_is_head_num(ops: Ops) -> None:
    q = random(5, 4, 16)
    given = (q, q.clone(), q.clone(), host([5]))
    zero, = ops("SelfAttention", *given, headNum=4, calcType=Calc.PA_ENCODER)
    four, = ops("SelfAttention", *given, headNum=4, kvHeadNum=4, calcType=Calc.PA_ENCODER)
    assert torch.equal(zero, four)


def test_scores_are_times_qk_scale(ops: Ops) -> None:
    given = (*three(5), host([5]))
    fields = {**PREFILL, "qkScale": 0.7}
    got, = ops("SelfAttention", *given, **fields)
    close(got, attention(*three(5), 0.7))


def test_lengths_are_int32(ops: Ops) -> None:
    for dtype in (torch.int64, F32):
        lengths = Given(torch.tensor([5], dtype=dtype), host=True)
        error = ops.refused("SelfAttention", *three(5), lengths, **PREFILL)
        assert error.code == NOT_IN_TABLE
