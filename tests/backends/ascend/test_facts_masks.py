"""Traps of masks and of rope, and what is computed in f32."""

from __future__ import annotations

import math

import pytest
import torch
from maskcase import attention, causal, mask_of, three, triangle
from opscase import (
    BF16,
    F16,
    F32,
    INTS,
    INVALID_PARAM,
    INVALID_TENSOR_DIM,
    NEEDS_COMPILER,
    SIXTEEN,
    Calc,
    MaskType,
    Norm,
    Ops,
    close,
    host,
    nz,
    random,
)

pytestmark = NEEDS_COMPILER

PREFILL = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25, "calcType": Calc.PA_ENCODER}
MASKED = {**PREFILL, "maskType": MaskType.NORM}
COMPRESSED = {**PREFILL, "maskType": MaskType.NORM_COMPRESS, "isTriuMask": 1}
DECODE = {"headNum": 4, "kvHeadNum": 2, "qkScale": 0.25, "maskType": MaskType.NORM}
LAYER = torch.zeros(1, dtype=INTS)


def one_query(ops: Ops, mask: torch.Tensor, past: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """A decode with a mask: the result, and the values of the cache as [slots, heads, dim]."""
    keys, values = random(1, 1, 9, 32), random(1, 1, 9, 32, seed=4)
    q, k, v = (each.flatten(1) for each in three(1))
    got, = ops("SelfAttention", q, k, v, keys, values, mask, host([past + 1]), host([1]), LAYER,
               **DECODE)
    return got.reshape(1, 4, 16), values[0, 0].reshape(9, 2, 16)


def test_a_mask_is_added_to_the_scores(ops: Ops) -> None:
    bias = random(5, 5)
    got, = ops("SelfAttention", *three(5), bias, host([5]), **MASKED)
    close(got, attention(*three(5), 0.25, bias))


@pytest.mark.parametrize("value", [-10000.0, torch.finfo(F16).min], ids=str)
def test_f16_hides_by_a_large_negative_number(ops: Ops, value: float) -> None:
    mask = torch.full((5, 5), value, dtype=F16).triu(1)
    got, = ops("SelfAttention", *three(5), mask, host([5]), **MASKED)
    close(got, attention(*three(5), 0.25, causal(5)))


def test_bf16_hides_by_1_which_is_times_minus_3e38(ops: Ops) -> None:
    got, = ops("SelfAttention", *three(5, BF16), mask_of(causal(5), BF16), host([5]), **MASKED)
    close(got, attention(*three(5, BF16), 0.25, causal(5)))


def test_a_large_negative_number_in_bf16_is_refused(ops: Ops) -> None:
    error = ops.refused("SelfAttention", *three(5, BF16), causal(5).to(BF16), host([5]), **MASKED)
    assert (error.code, "wanted 0 or 1" in error.sentence) == (INVALID_PARAM, True)


def test_1_in_f16_hides_nothing(ops: Ops) -> None:
    """It is added: in a plain mask a bias, in a compressed one refused."""
    ones = torch.ones(5, 5, dtype=F16).triu(1)
    got, = ops("SelfAttention", *three(5), ones, host([5]), **MASKED)
    close(got, attention(*three(5), 0.25, ones))
    compressed = torch.ones(128, 128, dtype=F16).triu(1)
    error = ops.refused("SelfAttention", *three(5), compressed, host([5]), **COMPRESSED)
    assert (error.code, "-10000 or less" in error.sentence) == (INVALID_PARAM, True)


def test_rows_of_a_mask_are_counted_from_0_not_from_the_past(ops: Ops) -> None:
    """The row of a query behind 6 keys is row 0."""
    mask = torch.zeros(9, 9, dtype=F16)
    mask[0, 1:] = -10000
    got, values = one_query(ops, mask)
    close(got, values[:1].repeat_interleave(2, 1).double())
    mask = torch.zeros(9, 9, dtype=F16)
    mask[6, 1:] = -10000
    other, _ = one_query(ops, mask)
    assert float((other - got).abs().max()) > 0.01


def test_a_causal_square_is_wrong_for_a_decode(ops: Ops) -> None:
    """Its row 0 shows key 0 alone."""
    got, values = one_query(ops, causal(9).half())
    close(got, values[:1].repeat_interleave(2, 1).double())


def test_a_decode_takes_a_mask_of_one_row(ops: Ops) -> None:
    """[sequences, 1, slots]: what MindIE passes."""
    mask = torch.zeros(1, 1, 9, dtype=F16)
    mask[0, 0, 1:] = -10000
    got, values = one_query(ops, mask)
    close(got, values[:1].repeat_interleave(2, 1).double())


def test_paged_attention_takes_no_mask(ops: Ops) -> None:
    given = (random(1, 4, 16), random(2, 16, 2, 16), random(2, 16, 2, 16),
             torch.zeros(1, 1, dtype=INTS), host([3]))
    fields = {"headNum": 4, "kvHeadNum": 2}
    assert ops.refused("PagedAttention", *given, random(1, 16), **fields).code == 5
    assert ops.refused("PagedAttention", *given, **fields, maskType=1).code == INVALID_PARAM


@SIXTEEN
def test_the_compressed_mask_is_128_by_128(ops: Ops, dtype: torch.dtype) -> None:
    got, = ops("SelfAttention", *three(130, dtype), triangle(dtype), host([130]), **COMPRESSED)
    close(got, attention(*three(130, dtype), 0.25, causal(130)))
    small = triangle(dtype)[:127].clone()
    error = ops.refused("SelfAttention", *three(5, dtype), small, host([5]), **COMPRESSED)
    assert (error.code, "[128, 128]" in error.sentence) == (INVALID_TENSOR_DIM, True)


def test_the_compressed_mask_of_a_310p_is_1_8_128_16(small_soc: Ops) -> None:
    mask = nz(triangle(F16, fractal=True))
    assert mask.tensor.shape == (1, 8, 128, 16)
    got, = small_soc("SelfAttention", *three(20), mask, host([20]), **COMPRESSED)
    close(got, attention(*three(20), 0.25, causal(20)))
    error = small_soc.refused("SelfAttention", *three(20), triangle(F16), host([20]), **COMPRESSED)
    assert error.code == INVALID_TENSOR_DIM


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, coefficient: int,
           ) -> torch.Tensor:
    """What ATB's documentation says of each coefficient."""
    wide = x.double()
    if coefficient == 2:
        first, second = wide.chunk(2, -1)
        other = torch.cat([-second, first], -1)
    elif coefficient == 4:
        a, b, c, d = wide.chunk(4, -1)
        other = torch.cat([-b, a, -d, c], -1)
    else:
        other = torch.stack([-wide[..., 1::2], wide[..., ::2]], -1).reshape(wide.shape)
    return wide * cos.double() + other * sin.double()


def angles(rows: int, coefficient: int, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, of the full width, in the order that the coefficient wants."""
    each = torch.arange(rows)[:, None] * torch.logspace(0, -2, width // 2)
    if coefficient == 2:
        whole = each.repeat(1, 2)
    elif coefficient == 4:
        whole = torch.cat([half.repeat(1, 2) for half in each.chunk(2, -1)], -1)
    else:
        whole = each.repeat_interleave(2, -1)
    return whole.cos().half(), whole.sin().half()


@pytest.mark.parametrize("coefficient", [2, 4, 32],
                         ids=["2_rotates_halves", "4_two_halves_apart", "width_pairs"])
def test_rope_coefficient(ops: Ops, coefficient: int) -> None:
    q, k = random(5, 4 * 32), random(5, 2 * 32)
    cos, sin = angles(5, coefficient)
    got = ops("Rope", q, k, cos, sin, torch.tensor([5], dtype=INTS), rotaryCoeff=coefficient)
    for x, y in zip((q, k), got, strict=True):
        heads = x.reshape(5, -1, 32)
        close(y, turned(heads, cos[:, None], sin[:, None], coefficient).reshape(y.shape))


def test_rope_lengths_do_not_change_the_result(ops: Ops) -> None:
    q, k, (cos, sin) = random(6, 64), random(6, 32), angles(6, 2)
    for coefficient in (2, 32):
        made = [ops("Rope", q, k, cos, sin, torch.tensor(lengths, dtype=INTS),
                    rotaryCoeff=coefficient) for lengths in ([6], [2, 4], [1, 1, 4])]
        assert all(torch.equal(each[0], made[0][0]) for each in made)
        assert all(torch.equal(each[1], made[0][1]) for each in made)


def test_rope_wants_a_row_of_cos_for_every_token(ops: Ops) -> None:
    """ATB does not look; here a table that was not gathered is refused."""
    for rows in (1, 4, 6):
        error = ops.refused("Rope", random(5, 64), random(5, 32), *angles(rows, 2),
                            torch.tensor([5], dtype=INTS), rotaryCoeff=2)
        assert (error.code, "wanted 5 rows" in error.sentence) == (INVALID_TENSOR_DIM, True)


@pytest.mark.parametrize("shape", [(5, 4, 16), (1, 1, 5, 4, 16), (320,)], ids=str)
def test_rope_refuses_3_axes(ops: Ops, shape: tuple[int, ...]) -> None:
    cos = random(5, 16)
    error = ops.refused("Rope", random(*shape), random(5, 32), cos, cos.clone(),
                        torch.tensor([5], dtype=INTS), rotaryCoeff=2)
    assert (error.code, "wanted 2 dims" in error.sentence) == (INVALID_TENSOR_DIM, True)


@pytest.mark.parametrize(("coefficient", "width", "fits"), [
    (2, 64, True), (4, 64, True), (64, 64, True), (32, 64, False), (8, 64, False),
    (16, 64, False), (128, 64, False)])
def test_rope_coefficients_are_2_4_or_the_width(ops: Ops, coefficient: int, width: int,
                                                fits: bool) -> None:
    cos = random(5, width)
    given = (random(5, 128), random(5, 64), cos, cos.clone(), torch.tensor([5], dtype=INTS))
    if fits:
        assert len(ops.infer("Rope", *given, rotaryCoeff=coefficient)) == 2
    else:
        assert ops.refused("Rope", *given, rotaryCoeff=coefficient).code == INVALID_TENSOR_DIM


@pytest.mark.parametrize(("width", "fits"), [(8, False), (16, True), (4096, True), (4112, False)])
def test_rope_widths_are_16_to_4096(ops: Ops, width: int, fits: bool) -> None:
    cos = random(1, width)
    given = (random(1, width), random(1, width), cos, cos.clone(), torch.tensor([1], dtype=INTS))
    if fits:
        assert len(ops.infer("Rope", *given, rotaryCoeff=2)) == 2
    else:
        assert ops.refused("Rope", *given, rotaryCoeff=2).code == INVALID_TENSOR_DIM


@pytest.mark.parametrize(("q", "k"), [(96, 64), (96, 48), (32, 64)])
def test_rope_sizes_divide_each_other(ops: Ops, q: int, k: int) -> None:
    """The columns of k those of q, and those of cos those of k."""
    cos = random(5, 32)
    error = ops.refused("Rope", random(5, q), random(5, k), cos, cos.clone(),
                        torch.tensor([5], dtype=INTS), rotaryCoeff=2)
    assert error.code == INVALID_TENSOR_DIM


@SIXTEEN
def test_a_linear_sums_in_f32_and_rounds_once(ops: Ops, dtype: torch.dtype) -> None:
    """In 16 bits 4096 products of 1 would stop growing at 2048, or at 256."""
    ones = torch.ones(1, 4096, dtype=dtype)
    x = torch.cat([ones, ones * 2 ** -9], -1)
    got, = ops("Linear", x, torch.ones(16, 8192, dtype=dtype), hasBias=False)
    assert torch.equal(got, torch.full((1, 16), 4096 + 8.0).to(dtype))


@SIXTEEN
def test_rms_norm_sums_in_f32_and_rounds_once(ops: Ops, dtype: torch.dtype) -> None:
    """x * gamma / sqrt(mean(x^2) + eps), whose squares are beyond f16."""
    x, gamma = random(3, 4096, dtype=dtype) * 300, random(4096, dtype=dtype) + 1
    got, = ops("RmsNorm", x, gamma, layerType=Norm.NORM, normParam__epsilon=1e-5)
    wide = x.double()
    want = wide * gamma.double() / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    steps = torch.finfo(dtype).eps
    assert float(((got.double() - want).abs() / want.abs().clamp_min(1e-3)).max()) <= steps


@SIXTEEN
def test_swiglu_rounds_once(ops: Ops, dtype: torch.dtype) -> None:
    x = random(64, 256, dtype=dtype) * 6
    got, = ops("Activation", x, activationType=6)
    gate, up = x.double().chunk(2, -1)
    want = torch.nn.functional.silu(gate) * up
    steps = torch.finfo(dtype).eps
    assert float(((got.double() - want).abs() / want.abs().clamp_min(1e-3)).max()) <= steps


@SIXTEEN
def test_softmax_sums_in_f32(ops: Ops, dtype: torch.dtype) -> None:
    """Of 8192 equal numbers, whose exponentials would stop adding up in 16 bits."""
    got, = ops("Softmax", torch.zeros(1, 8192, dtype=dtype), axes=(1,))
    assert torch.equal(got, torch.full((1, 8192), 1 / 8192, dtype=dtype))


@SIXTEEN
def test_attention_sums_in_f32(ops: Ops, dtype: torch.dtype) -> None:
    """The mean of 3000 values of 1 is 1, scores beyond f16 are fine."""
    q, k = torch.full((1, 1, 256), 60.0, dtype=dtype), torch.full((3000, 1, 256), 60.0, dtype=dtype)
    v = torch.ones(3000, 1, 256, dtype=dtype)
    got, = ops("SelfAttention", q, k, v, host([[1], [3000]]), headNum=1,
               calcType=Calc.PA_ENCODER, qkScale=1.0)
    assert torch.equal(got, torch.ones(1, 1, 256, dtype=dtype))


def test_results_are_rounded_to_the_dtype_of_x(ops: Ops) -> None:
    for dtype in (F16, BF16):
        x = random(3, 32, dtype=dtype)
        for made in (ops("Linear", x, random(16, 32, dtype=dtype), hasBias=False)[0],
                     ops("RmsNorm", x, random(32, dtype=dtype), layerType=Norm.NORM)[0],
                     ops("Activation", x, activationType=6)[0],
                     ops("Softmax", x, axes=(1,))[0]):
            assert made.dtype is dtype


def test_bias_of_a_linear_is_added_before_rounding(ops: Ops) -> None:
    x, w = torch.ones(1, 2048, dtype=F16), torch.ones(16, 2048, dtype=F16)
    got, = ops("Linear", x, w, torch.full((16,), -2047.5, dtype=F32))
    assert torch.equal(got, torch.full((1, 16), 0.5, dtype=F16))


def test_swish_is_x_times_sigmoid_of_the_scale_times_x(ops: Ops) -> None:
    for scale in (1.0, 1.5):
        x = random(4, 32)
        got, = ops("Activation", x, activationType=4, scale=scale)
        close(got, x.double() * torch.sigmoid(scale * x.double()))


def test_fast_gelu_is_no_exact_gelu(ops: Ops) -> None:
    x = random(4, 32) * 3
    got, = ops("Activation", x, activationType=3)
    exact = x.double() * 0.5 * (1 + torch.erf(x.double() / math.sqrt(2)))
    assert float((got.double() - exact).abs().max()) > 1e-3
