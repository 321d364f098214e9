"""The operations of the emulation on odd shapes, against torch."""

from __future__ import annotations

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
    NOT_IN_TABLE,
    SIXTEEN,
    Norm,
    Ops,
    close,
    nz,
    random,
    to_nz,
)

pytestmark = NEEDS_COMPILER



@SIXTEEN
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 21])
@pytest.mark.parametrize("transposed", [True, False], ids=["nk", "kn"])
def test_linear(ops: Ops, dtype: torch.dtype, rows: int, transposed: bool) -> None:
    x, w, bias = random(rows, 37, dtype=dtype), random(29, 37, dtype=dtype), random(29, dtype=dtype)
    weight = w if transposed else w.T.contiguous()
    want = x.double() @ w.double().T
    got, = ops("Linear", x, weight, transposeB=transposed, hasBias=False)
    close(got, want)
    got, = ops("Linear", x, weight, bias, transposeB=transposed)
    close(got, want + bias.double())


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 21])
@pytest.mark.parametrize("transposed", [True, False], ids=["nk", "kn"])
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_linear_nz_weight(ops: Ops, rows: int, transposed: bool, dims: int) -> None:
    x, w = random(rows, 48), random(32, 48)
    folded = to_nz(w if transposed else w.T.contiguous())
    weight = folded[None] if dims == 4 else folded
    if dims == 2:
        weight = folded.reshape(w.shape if transposed else w.T.shape)
    got, = ops("Linear", x, nz(weight), transposeB=transposed, hasBias=False)
    close(got, x.double() @ w.double().T)


def test_linear_nz_weight_with_padding(ops: Ops) -> None:
    """Depths that are no multiple of 16 end within a group; what is behind is not read."""
    x, w = random(3, 37), random(37, 32)
    got, = ops("Linear", x, nz(to_nz(w)[None]), transposeB=False, hasBias=False)
    close(got, x.double() @ w.double())
    got, = ops("Linear", x, nz(to_nz(w.T.contiguous())[None]), transposeB=True, hasBias=False)
    close(got, x.double() @ w.double())


def test_linear_more_depth_than_a_panel(ops: Ops) -> None:
    for rows in (3, 19):
        x, w = random(rows, 2061), random(19, 2061)
        got, = ops("Linear", x, w, hasBias=False)
        close(got, x.double() @ w.double().T)


def test_linear_turned_x_and_batches(ops: Ops) -> None:
    x, w = random(2, 5, 24), random(7, 24)
    want = x.double() @ w.double().T
    got, = ops("Linear", x, w, hasBias=False)
    close(got, want)
    got, = ops("Linear", x.transpose(1, 2).contiguous(), w, hasBias=False, transposeA=True)
    close(got, want)


def test_linear_f32_and_its_bias(ops: Ops) -> None:
    x, w = random(5, 24, dtype=F32), random(7, 24, dtype=F32)
    got, = ops("Linear", x, w, hasBias=False)
    close(got, x.double() @ w.double().T)
    bias = random(1, 7, dtype=F32)
    assert ops.refused("Linear", x, w, bias).code == NOT_IN_TABLE
    got, = ops("Linear", x.to(F16), w.to(F16), bias)
    close(got, x.to(F16).double() @ w.to(F16).double().T + bias)
    wide = random(16, 32)
    error = ops.refused("Linear", random(5, 32), nz(to_nz(wide)[None]), random(16, dtype=F32))
    assert error.code == NOT_IN_TABLE


def test_linear_refuses(ops: Ops) -> None:
    x, w = random(5, 24), random(7, 24)
    error = ops.refused("Linear", x, random(7, 23), hasBias=False)
    assert error.code == INVALID_TENSOR_DIM
    assert error.sentence == ("LinearOperation: weight is f16[7, 23], wanted 24 as its depth, as x "
                              "f16[5, 24] has (transposeB is true)")
    assert ops.refused("Linear", x, w, random(8)).code == INVALID_TENSOR_DIM
    assert ops.refused("Linear", x, random(1, 7, 24), hasBias=False).code == DIM_NUM
    for fields in ({"enAccum": True}, {"outDataType": 1}, {"matmulType": 1}, {"rsv": 1}):
        assert ops.refused("Linear", x, w, hasBias=False, **fields).code == INVALID_PARAM


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * gamma.double()


@SIXTEEN
def test_rms_norm(ops: Ops, dtype: torch.dtype) -> None:
    x, gamma = random(5, 48, dtype=dtype), random(1, 48, dtype=dtype)
    fields = {"layerType": Norm.NORM, "normParam__epsilon": 1e-3}
    got, = ops("RmsNorm", x, gamma, **fields)
    close(got, rms_norm(x, gamma, 1e-3))
    got, = ops("RmsNorm", x, gamma, normParam__modelType=1, **fields)
    close(got, rms_norm(x, gamma.double() + 1, 1e-3))


@SIXTEEN
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_rms_norm_of_a_sum(ops: Ops, dtype: torch.dtype, bias: bool) -> None:
    """PRENORM has the sum as its second output; POSTNORM has not."""
    x, residual = random(5, 48, dtype=dtype), random(5, 48, dtype=dtype, seed=9)
    gamma, added = random(48, dtype=dtype), random(1, 48, dtype=dtype)
    inputs = (x, added, residual, gamma) if bias else (x, residual, gamma)
    total = x.double() + residual.double() + (added.double() if bias else 0)
    got, kept = ops("RmsNorm", *inputs, layerType=Norm.PRENORM, preNormParam__epsilon=1e-3,
                    preNormParam__hasBias=bias)
    close(got, rms_norm(total, gamma, 1e-3))
    close(kept, total)
    got, = ops("RmsNorm", *inputs, layerType=Norm.POSTNORM, postNormParam__epsilon=1e-3,
               postNormParam__hasBias=bias)
    close(got, rms_norm(total, gamma, 1e-3))


def test_rms_norm_in_place(ops: Ops) -> None:
    x, residual, gamma = random(5, 48), random(5, 48, seed=9), random(48)
    total = x.double() + residual.double()
    ops("RmsNorm", x, residual, gamma, in_place=(1, 0), layerType=Norm.PRENORM)
    close(residual, rms_norm(total, gamma, 1e-5))
    close(x, total)


def test_rms_norm_refuses(ops: Ops) -> None:
    x, gamma = random(5, 48), random(48)
    assert ops.refused("RmsNorm", x, gamma).code == INVALID_PARAM
    error = ops.refused("RmsNorm", random(5, 24), random(24), layerType=Norm.NORM)
    assert (error.code, "multiple of 32 bytes" in error.sentence) == (INVALID_TENSOR_DIM, True)
    assert ops.refused("RmsNorm", x, random(32), layerType=Norm.NORM).code == INVALID_TENSOR_DIM
    assert ops.refused("RmsNorm", x, random(2, 48), layerType=Norm.NORM).code == INVALID_TENSOR_DIM
    error = ops.refused("RmsNorm", x, random(4, 48), gamma, layerType=Norm.PRENORM)
    assert "residual is f16[4, 48], wanted the shape of x f16[5, 48]" in error.sentence
    wide = random(5, 48, dtype=F32)
    assert ops.refused("RmsNorm", wide, wide, layerType=Norm.NORM).code == NOT_IN_TABLE
    for fields in ({"epsilon": 0.0}, {"quantType": 2}, {"rstd": True}, {"rsv": 1}):
        named = {f"normParam__{key}": value for key, value in fields.items()}
        assert ops.refused("RmsNorm", x, gamma, layerType=Norm.NORM, **named).code == INVALID_PARAM


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=["f16", "bf16", "f32"])
def test_layer_norm(ops: Ops, dtype: torch.dtype) -> None:
    x, gamma, beta = random(5, 37, dtype=dtype), random(37, dtype=dtype), random(37, dtype=dtype)
    got, = ops("LayerNorm", x, gamma, beta, layerType=Norm.NORM, normParam__epsilon=1e-3,
               normParam__beginNormAxis=1, normParam__beginParamsAxis=1)
    close(got, torch.nn.functional.layer_norm(x.double(), (37,), gamma.double(), beta.double(),
                                              1e-3))


def test_layer_norm_refuses(ops: Ops) -> None:
    x, gamma = random(5, 48), random(48)
    error = ops.refused("LayerNorm", x, gamma, gamma, layerType=Norm.NORM)
    assert "beginNormAxis is 0, wanted 1" in error.sentence
    assert ops.refused("LayerNorm", x, gamma, gamma, layerType=Norm.PRENORM).code == INVALID_PARAM
    error = ops.refused("LayerNorm", x, gamma, random(47), layerType=Norm.NORM,
                        normParam__beginNormAxis=1)
    assert error.code == INVALID_TENSOR_DIM


def turned(x: torch.Tensor, coeff: int) -> torch.Tensor:
    """What sin is multiplied with, for every `width` of a row."""
    half = x.shape[-1] // coeff
    blocks = x.reshape(*x.shape[:-1], coeff // 2, 2, half)
    return torch.stack((-blocks[..., 1, :], blocks[..., 0, :]), -2).reshape(x.shape)


@SIXTEEN
@pytest.mark.parametrize("coeff", [2, 4, 32], ids=["half_split", "two_halves", "interleaved"])
def test_rope(ops: Ops, dtype: torch.dtype, coeff: int) -> None:
    """Coeff 4 turns two halves apart; the width itself turns pairs."""
    q, k = random(5, 4 * 32, dtype=dtype), random(5, 2 * 32, dtype=dtype)
    cos, sin = random(5, 32, dtype=dtype), random(5, 32, dtype=dtype, seed=3)
    got = ops("Rope", q, k, cos, sin, torch.tensor([5], dtype=INTS), rotaryCoeff=coeff)
    for x, y in zip((q, k), got, strict=True):
        heads = x.double().reshape(5, -1, 32)
        want = heads * cos.double()[:, None] + turned(heads, coeff) * sin.double()[:, None]
        close(y, want.reshape(x.shape))


def test_rope_f32_angles_with_f16_rows(ops: Ops) -> None:
    q, cos, sin = random(5, 64), random(5, 32, dtype=F32), random(5, 32, dtype=F32, seed=1)
    length = torch.tensor([5], dtype=INTS)
    wide, = ops("Rope", q.reshape(1, 5, 2, 32), q.reshape(1, 5, 2, 32), cos, sin, length,
                rotaryCoeff=2)[:1]
    flat, _ = ops("Rope", q, q.clone(), cos, sin, length, rotaryCoeff=2)
    assert torch.equal(wide.reshape(5, 64), flat)
    heads = q.double().reshape(5, 2, 32)
    close(flat, (heads * cos[:, None] + turned(heads, 2) * sin[:, None]).reshape(5, 64))
    thin = q.to(BF16)
    assert ops.refused("Rope", thin, thin, cos, sin, length, rotaryCoeff=2).code == NOT_IN_TABLE


@pytest.mark.parametrize(("q", "k", "angles", "coeff", "words"), [
    ((5, 2, 32), (5, 64), (5, 32), 2, "query is f16[5, 2, 32], wanted 2 dims"),
    ((5, 64), (5, 2, 32), (5, 32), 2, "key is f16[5, 2, 32], wanted 2 dims"),
    ((5, 64), (5, 64), (5, 32), 64, "rotaryCoeff is 64, wanted 2, 4 or the width of cos, 32"),
    ((5, 96), (5, 64), (5, 32), 2, "wanted a hidden size that is a multiple of key's, 64"),
    ((5, 96), (5, 48), (5, 32), 2, "key is f16[5, 48], wanted a hidden size that is a multiple"),
    ((5, 64), (5, 64), (4, 32), 2, "wanted 5 rows"),
    ((5, 64), (4, 64), (5, 32), 2, "wanted as many rows as query"),
    ((5, 64), (5, 64), (5, 8), 2, "a width of 16 to 4096"),
    ((5, 64), (5, 64), (1, 5, 32), 2, "wanted 2 dims [tokens, width]"),
])
def test_rope_refuses(ops: Ops, q: tuple[int, ...], k: tuple[int, ...], angles: tuple[int, ...],
                      coeff: int, words: str) -> None:
    cos = random(*angles)
    error = ops.refused("Rope", random(*q), random(*k), cos, cos.clone(),
                        torch.tensor([5], dtype=INTS), rotaryCoeff=coeff)
    assert error.code == INVALID_TENSOR_DIM
    assert words in error.sentence


def test_rope_wants_a_coefficient_that_atb_has(ops: Ops) -> None:
    for fields in ({"rotaryCoeff": 3}, {"rotaryCoeff": 0}, {"cosFormat": 1}):
        x = random(5, 64)
        length = torch.tensor([5], dtype=INTS)
        assert ops.refused("Rope", x, x, x, x, length, **fields).code == INVALID_PARAM
