"""SelfAttention on contiguous caches in the emulation, and KvCache."""

from __future__ import annotations

import pytest
import torch
from maskcase import attention, causal, fold, heads_of, mask_of, unfold
from opscase import (
    BF16,
    DIM_NUM,
    F16,
    INTS,
    INVALID_PARAM,
    INVALID_TENSOR_DIM,
    NEEDS_COMPILER,
    NOT_IN_TABLE,
    SIXTEEN,
    TENSOR_ADDR,
    Arg,
    AtbError,
    Calc,
    MaskType,
    Ops,
    close,
    host,
    nz,
    random,
)

pytestmark = NEEDS_COMPILER

FIELDS = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25}
MASKED = {**FIELDS, "maskType": MaskType.NORM}
LAYER = torch.tensor([1], dtype=INTS)
OFFSETS, LENGTHS = (7, 3), (2, 3)
"""tokenOffset is past + new: five tokens are there in the first sequence, none in the second."""


def caches(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """[layers, sequences, slots, hidden]."""
    return random(2, 2, 9, 48, dtype=dtype), random(2, 2, 9, 48, dtype=dtype, seed=4)


def step(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The new tokens of both sequences."""
    return (heads_of(5, 4, 24, dtype), heads_of(5, 2, 24, dtype, 1),
            heads_of(5, 2, 24, dtype, 2))


def allowed() -> torch.Tensor:
    """[sequences, tokens, slots]: row i sees what is before it, behind the past."""
    hidden = torch.full((2, 3, 9), -10000.0)
    for sequence, (end, length) in enumerate(zip(OFFSETS, LENGTHS, strict=True)):
        for row in range(length):
            hidden[sequence, row, :end - length + row + 1] = 0
    return hidden


def written(cache: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The cache after the step: new rows land at [tokenOffset - seqLen, tokenOffset)."""
    made, first = cache.clone(), 0
    for sequence, (end, length) in enumerate(zip(OFFSETS, LENGTHS, strict=True)):
        made[1, sequence, end - length:end] = new[first:first + length].flatten(1)
        first += length
    return made


def check(got: torch.Tensor, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
          hidden: torch.Tensor | None) -> None:
    first = 0
    for sequence, (end, length) in enumerate(zip(OFFSETS, LENGTHS, strict=True)):
        k, v = (cache[1, sequence, :end].reshape(end, 2, 24) for cache in (keys, values))
        added = None if hidden is None else hidden[sequence, :length, :end]
        want = attention(q[first:first + length], k, v, 0.25, added)
        close(got.reshape(5, 4, 24)[first:first + length], want)
        first += length


@SIXTEEN
def test_fa_writes_the_cache_and_token_offset_is_past_plus_new(ops: Ops,
                                                               dtype: torch.dtype) -> None:
    (q, k, v), (keys, values) = step(dtype), caches(dtype)
    want_keys, want_values = written(keys, k), written(values, v)
    got, = ops("SelfAttention", *(t.flatten(1) for t in (q, k, v)), keys, values,
               mask_of(allowed(), dtype), host(OFFSETS), host(LENGTHS), LAYER, **MASKED)
    assert torch.equal(keys, want_keys)
    assert torch.equal(values, want_values)
    check(got, q, keys, values, allowed())


def test_fa_without_a_mask_sees_all_keys_up_to_token_offset(ops: Ops) -> None:
    (q, k, v), (keys, values) = step(F16), caches(F16)
    got, = ops("SelfAttention", *(t.flatten(1) for t in (q, k, v)), keys, values, host(OFFSETS),
               host(LENGTHS), LAYER, **FIELDS)
    check(got, q, keys, values, None)


def test_fa_bypass_leaves_the_cache_and_has_the_mask_at_3(ops: Ops) -> None:
    q, (keys, values) = step(F16)[0], caches(F16)
    before = keys.clone()
    got, = ops("SelfAttention", q.flatten(1), keys, values, allowed().half(), host(OFFSETS),
               host(LENGTHS), LAYER, **MASKED, kvcacheCfg=1)
    assert torch.equal(keys, before)
    check(got, q, keys, values, allowed())


def test_fa_mask_rows_are_counted_from_0(ops: Ops) -> None:
    """A causal [slots, slots] mask hides the past of a decode: row 0 sees key 0 only."""
    q, (keys, values) = heads_of(2, 4, 24, F16), caches(F16)
    k, v = random(2, 48), random(2, 48)
    got, = ops("SelfAttention", q.flatten(1), k, v, keys, values, causal(9).half(), host((7, 3)),
               host((1, 1)), LAYER, **MASKED, calcType=Calc.DECODER)
    for sequence in range(2):
        first = values[1, sequence, :1].reshape(1, 2, 24)
        close(got[sequence].reshape(1, 4, 24),
              attention(q[sequence:sequence + 1], first, first, 0.25))


def test_fa_triu_mask_is_refused_where_the_past_is_seen(ops: Ops) -> None:
    (q, k, v), (keys, values) = step(F16), caches(F16)
    error = ops.refused("SelfAttention", *(t.flatten(1) for t in (q, k, v)), keys, values,
                        allowed().half(), host(OFFSETS), host(LENGTHS), LAYER, **MASKED,
                        isTriuMask=1)
    assert "isTriuMask skips what is above the diagonal" in error.sentence


def test_fa_decode_with_a_mask_of_one_row(ops: Ops) -> None:
    """[sequences, 1, slots]."""
    q, (keys, values) = heads_of(2, 4, 24, F16), caches(F16)
    hidden = torch.zeros(2, 1, 9)
    hidden[0, 0, 2:4] = -10000
    got, = ops("SelfAttention", q.flatten(1), random(2, 48), random(2, 48), keys, values,
               hidden.half(), host((7, 3)), host((1, 1)), LAYER, **MASKED)
    for sequence, end in enumerate((7, 3)):
        k, v = (c[1, sequence, :end].reshape(end, 2, 24) for c in (keys, values))
        close(got[sequence].reshape(1, 4, 24),
              attention(q[sequence:sequence + 1], k, v, 0.25, hidden[sequence, :, :end]))


def test_fa_bf16_mask_value_is_1(ops: Ops) -> None:
    (q, k, v), (keys, values) = step(BF16), caches(BF16)
    error = ops.refused("SelfAttention", *(t.flatten(1) for t in (q, k, v)), keys, values,
                        allowed().to(BF16), host(OFFSETS), host(LENGTHS), LAYER, **MASKED)
    assert "wanted 0 or 1" in error.sentence
    assert torch.equal(keys, caches(BF16)[0])


def test_fa_of_4_dims_gives_3(ops: Ops) -> None:
    """[sequences, tokens, heads, dim] to [sequences, tokens, heads * dim]."""
    q, k, v = random(2, 3, 4, 24), random(2, 3, 2, 24), random(2, 3, 2, 24, seed=1)
    keys, values = caches(F16)
    got, = ops("SelfAttention", q, k, v, keys, values, host((7, 3)), host((3, 3)), LAYER, **FIELDS)
    assert got.shape == (2, 3, 96)
    assert torch.equal(keys[1, 0, 4:7], k[0].flatten(1))
    for sequence, end in enumerate((7, 3)):
        a, b = (c[1, sequence, :end].reshape(end, 2, 24) for c in (keys, values))
        close(got[sequence].reshape(3, 4, 24), attention(q[sequence], a, b, 0.25))


def test_fa_per_layer_caches_by_one_layer_and_id_0(ops: Ops) -> None:
    (q, k, v), (keys, values) = step(F16), caches(F16)
    several = [t.flatten(1) for t in (q, k, v)]
    lengths = (host(OFFSETS), host(LENGTHS))
    one = keys[1:].clone(), values[1:].clone()
    got, = ops("SelfAttention", *several, *one, *lengths, torch.zeros(1, dtype=INTS), **FIELDS)
    want, = ops("SelfAttention", *several, keys, values, *lengths, LAYER, **FIELDS)
    assert torch.equal(got, want)
    assert torch.equal(one[0], keys[1:])


def test_310p_fa_has_nz_caches_of_5_dims(small_soc: Ops) -> None:
    (q, k, v), (keys, values) = step(F16), (random(2, 2, 16, 48), random(2, 2, 16, 48, seed=4))
    folded = [fold(cache.reshape(2, 2, 16, 2, 24)) for cache in (keys, values)]
    got, = small_soc("SelfAttention", *(t.flatten(1) for t in (q, k, v)), *map(nz, folded),
                     host(OFFSETS), host(LENGTHS), LAYER, **FIELDS)
    want_keys, want_values = written(keys, k), written(values, v)
    assert torch.equal(unfold(folded[0], 2).flatten(-2), want_keys)
    check(got, q, want_keys, want_values, None)
    error = small_soc.refused("SelfAttention", *(t.flatten(1) for t in (q, k, v)), keys, values,
                              host(OFFSETS), host(LENGTHS), LAYER, **FIELDS)
    assert error.code == NOT_IN_TABLE


@pytest.mark.parametrize(("offsets", "lengths", "words"), [
    ((7, 2), (2, 3), "tokenOffset[1] is 2, wanted 3 (seqLen) to 9 (slots): it is past + new"),
    ((10, 3), (2, 3), "tokenOffset[0] is 10"),
    ((7, 3), (2, 2), "seqLen sums to 4, query is f16[5, 96]"),
    ((7, 3), (0, 5), "seqLen[0] is 0"),
])
def test_fa_refuses_lengths(ops: Ops, offsets: tuple[int, int], lengths: tuple[int, int],
                            words: str) -> None:
    (q, k, v), (keys, values) = step(F16), caches(F16)
    error = ops.refused("SelfAttention", *(t.flatten(1) for t in (q, k, v)), keys, values,
                        host(offsets), host(lengths), LAYER, **FIELDS)
    assert error.code == INVALID_PARAM
    assert words in error.sentence


def test_fa_needs_lengths_on_the_host(ops: Ops) -> None:
    """tokenOffset and seqLen; their deviceData may be null."""
    (q, k, v), (keys, values) = step(F16), caches(F16)
    several = (*(t.flatten(1) for t in (q, k, v)), keys, values)
    device = torch.tensor(OFFSETS, dtype=INTS)
    for given in ((device, host(LENGTHS)), (host(OFFSETS), device)):
        error = ops.refused("SelfAttention", *several, *given, LAYER, **FIELDS)
        assert (error.code, "hostData is null" in error.sentence) == (TENSOR_ADDR, True)


def test_fa_refuses(ops: Ops) -> None:
    (q, k, v), (keys, values) = step(F16), caches(F16)
    flat = [t.flatten(1) for t in (q, k, v)]
    ends = host(OFFSETS), host(LENGTHS)
    cases: list[tuple[tuple[Arg, ...], int]] = [
        ((q, k, v, keys, values, *ends, LAYER), DIM_NUM),
        ((flat[0], k, flat[2], keys, values, *ends, LAYER), DIM_NUM),
        ((*flat, keys[0], values[0], *ends, LAYER), DIM_NUM),
        ((*flat, keys[..., :32].clone(), values, *ends, LAYER), INVALID_TENSOR_DIM),
        ((*flat, keys, values[:, :, :8].clone(), *ends, LAYER), INVALID_TENSOR_DIM),
        ((*flat, keys, values, *ends, torch.zeros(2, dtype=INTS)), INVALID_TENSOR_DIM),
        ((*flat, keys, values, host([7]), host([5]), LAYER), INVALID_TENSOR_DIM),
        ((*flat, keys, values, *ends, LAYER + 1), INVALID_PARAM),
        ((*flat, nz(fold(keys.reshape(2, 2, 9, 2, 24))), values, *ends, LAYER), NOT_IN_TABLE),
    ]
    for inputs, code in cases:
        assert ops.refused("SelfAttention", *inputs, **FIELDS).code == code
    thin = [random(5, 4 * 6), random(5, 2 * 6), random(5, 2 * 6), random(2, 2, 9, 12),
            random(2, 2, 9, 12)]
    error = ops.refused("SelfAttention", *thin, *ends, LAYER, **FIELDS)
    assert "multiples of 16" in error.sentence
    error = ops.refused("SelfAttention", *flat, keys, values, allowed().half()[:, :2].clone(),
                        *ends, LAYER, **MASKED)
    assert "at least 3 rows and 7 columns" in error.sentence
    error = ops.refused("SelfAttention", *flat, keys, values, *ends, LAYER, **FIELDS,
                        calcType=Calc.DECODER)
    assert "calcType DECODER takes one token a sequence" in error.sentence


@pytest.mark.parametrize("dims", [2, 4])
def test_kv_cache_writes_in_place(ops: Ops, dims: int) -> None:
    past, new = random(2, 2, 9, 48), random(6, 48, seed=3)
    want = past.clone()
    want[1, 0, 4:7], want[1, 1, :3] = new[:3], new[3:]
    given = new if dims == 2 else new.reshape(2, 3, 2, 24)
    outputs = ops("KvCache", given, LAYER, past, torch.tensor([7, 3], dtype=INTS),
                  torch.tensor([3, 3], dtype=INTS))
    assert outputs == ()
    assert torch.equal(past, want)


@pytest.mark.parametrize(("layer", "ends", "lengths", "words"), [
    (2, (7, 3), (3, 3), "layerId is 2, past has 2"),
    (1, (10, 3), (3, 3), "sequence 0 has seqLen 3 and tokenOffset 10"),
    (1, (7, 2), (3, 3), "sequence 1 has seqLen 3 and tokenOffset 2"),
    (1, (7, 3), (3, 2), "seqLen sums to 5, newKv has 6"),
])
def test_kv_cache_refuses(ops: Ops, layer: int, ends: tuple[int, int], lengths: tuple[int, int],
                          words: str) -> None:
    error = ops.refused("KvCache", random(6, 48), torch.tensor([layer], dtype=INTS),
                        random(2, 2, 9, 48), torch.tensor(ends, dtype=INTS),
                        torch.tensor(lengths, dtype=INTS))
    assert error.code == INVALID_PARAM
    assert words in error.sentence


def test_kv_cache_has_no_bf16(ops: Ops) -> None:
    lengths = torch.tensor([3, 3], dtype=INTS)
    with pytest.raises(AtbError, match="13: KvCacheOperation"):
        ops("KvCache", random(6, 48, dtype=BF16), LAYER, random(2, 2, 9, 48, dtype=BF16), lengths,
            lengths.clone())
