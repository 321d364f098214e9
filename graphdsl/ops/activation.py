"""Activations: computed in f32, rounded to the dtype of x."""

from __future__ import annotations

import math

from graphdsl.ir import Value
from graphdsl.op import operation
from graphdsl.ops.math import as_dtype, erf, exp, maximum, tanh


@operation("x[*b] -> y[*b]")
def sigmoid(x: Value) -> Value:
    """1 / (1 + e^-x)."""
    h = as_dtype(x, "f32")
    return as_dtype(1.0 / (exp(-h) + 1.0), x.dtype)


@operation("x[*b] -> y[*b]")
def silu(x: Value) -> Value:
    """x * sigmoid(x). Source: Hendrycks and Gimpel, arXiv 1606.08415; also known as swish."""
    h = as_dtype(x, "f32")
    return as_dtype(h * sigmoid(h), x.dtype)


@operation("x[*b] -> y[*b]")
def gelu(x: Value) -> Value:
    """x * (1 + erf(x / sqrt(2))) / 2. Source: Hendrycks and Gimpel, arXiv 1606.08415."""
    h = as_dtype(x, "f32")
    return as_dtype(h * (erf(h * math.sqrt(0.5)) + 1.0) * 0.5, x.dtype)


@operation("x[*b] -> y[*b]")
def gelu_tanh(x: Value) -> Value:
    """The tanh approximation of gelu: x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2.
    Source: Hendrycks and Gimpel, arXiv 1606.08415."""
    h = as_dtype(x, "f32")
    inner = (h + h * h * h * 0.044715) * math.sqrt(2.0 / math.pi)
    return as_dtype(h * (tanh(inner) + 1.0) * 0.5, x.dtype)


@operation("x[*b] -> y[*b]")
def relu(x: Value) -> Value:
    """x where it is above 0, else 0."""
    y: Value = maximum(x, 0.0)
    return y


@operation("gate[*b], up[*b] -> y[*b]")
def swiglu(gate: Value, up: Value) -> Value:
    """silu(gate) * up. Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202."""
    y: Value = silu(gate) * up
    return y


@operation("gate[*b], up[*b] -> y[*b]")
def geglu(gate: Value, up: Value) -> Value:
    """gelu(gate) * up. Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202."""
    y: Value = gelu(gate) * up
    return y


@operation("gate[*b], up[*b] -> y[*b]")
def geglu_tanh(gate: Value, up: Value) -> Value:
    """gelu_tanh(gate) * up. Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202."""
    y: Value = gelu_tanh(gate) * up
    return y
