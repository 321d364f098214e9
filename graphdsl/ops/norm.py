"""Norms and softmax along the last axis: statistics in f32, results in the dtype of x."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.op import operation
from graphdsl.ops.math import as_dtype, exp, mean, reduce_max, reduce_sum, rsqrt


@operation("x[*b, d], weight[d]:W -> y[*b, d]")
def rms_norm(x: Value, weight: Value, *, eps: float) -> Value:
    """y = x / sqrt(mean(x^2) + eps) * weight: normalised in f32, rounded to x's dtype, then
    multiplied by the weight. A weight in f32 beside a 16-bit x is multiplied before the rounding,
    as Gemma has it with its (1 + w). Raises GraphError for a weight of another dtype.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467.
    """
    if weight.dtype not in (x.dtype, "f32"):
        raise GraphError(f"weight is {weight.type}, wanted {x.dtype} as x is, or f32",
                         hint=f'insert cast(weight, dtype="{x.dtype}")')
    h = as_dtype(x, "f32")
    normed = h * rsqrt(mean(h * h) + eps)
    return as_dtype(as_dtype(normed, weight.dtype) * weight, x.dtype)


@operation("x[*b, d], weight[d], bias?[d] -> y[*b, d]")
def layer_norm(x: Value, weight: Value, bias: Value | None = None, *, eps: float) -> Value:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, all in f32, rounded once to x's
    dtype, as torch does it.

    Source: Ba, Kiros and Hinton, Layer Normalization, arXiv 1607.06450.
    """
    h = as_dtype(x, "f32")
    centred = h - mean(h)
    y = centred * rsqrt(mean(centred * centred) + eps) * as_dtype(weight, "f32")
    if bias is not None:
        y = y + as_dtype(bias, "f32")
    return as_dtype(y, x.dtype)


@operation("x[*b, d], r[*b, d], weight[d]:W -> y[*b, d], total[*b, d]")
def add_rms_norm(x: Value, r: Value, weight: Value, *, eps: float) -> tuple[Value, Value]:
    """rms_norm(x + r) and the sum itself, which is the residual of the next add."""
    total = x + r
    return rms_norm(total, weight, eps=eps), total


@operation("x[*b, d], r[*b, d], weight[d], bias?[d] -> y[*b, d], total[*b, d]")
def add_layer_norm(x: Value, r: Value, weight: Value, bias: Value | None = None, *,
                   eps: float) -> tuple[Value, Value]:
    """layer_norm(x + r) and the sum itself, which is the residual of the next add."""
    total = x + r
    return layer_norm(total, weight, bias, eps=eps), total


@operation("x[*b, d] -> y[*b, d]")
def softmax(x: Value) -> Value:
    """e^x over the sum of e^x in every row, in f32, rounded to x's dtype. A row of -inf alone
    gives nan, as in torch."""
    h = as_dtype(x, "f32")
    e = exp(h - reduce_max(h))
    return as_dtype(e / reduce_sum(e), x.dtype)
