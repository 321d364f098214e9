"""Linears, norms, activations and searches against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opcase import apply, draw, normal
from torch import Tensor

from graphdsl import ops
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, TensorType, Value

DTYPES = [torch.float32, torch.bfloat16]


def leading(generator: torch.Generator) -> tuple[int, ...]:
    return tuple(draw(generator, 1, 4) for _ in range(draw(generator, 0, 3)))


def close(ours: Tensor, expected: Tensor) -> None:
    """Equal up to the order of sums: 1e-5, for bf16 one step of rounding."""
    rtol = 1e-5 if ours.dtype == torch.float32 else 2 ** -7
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: torch.dtype, generator: torch.Generator) -> None:
    k, n = draw(generator, 1, 40), draw(generator, 1, 40)
    x = normal(generator, *leading(generator), k, dtype=dtype)
    w, bias = normal(generator, n, k, dtype=dtype), normal(generator, n, dtype=dtype)
    product = (x.float() @ w.float().T).to(dtype)
    close(apply(ops.matmul_nt, x, w), product)
    close(apply(ops.linear, x, w), product)
    close(apply(ops.linear, x, w, bias), product + bias)
    close(apply(ops.linear, x, w), F.linear(x, w))


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul(dtype: torch.dtype, generator: torch.Generator) -> None:
    b, (m, k, n) = leading(generator), (draw(generator, 1, 9) for _ in range(3))
    x, y = normal(generator, *b, m, k, dtype=dtype), normal(generator, *b, k, n, dtype=dtype)
    close(apply(lambda x, y: x @ y, x, y), (x.float() @ y.float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_by_a_weight_of_two_axes(dtype: torch.dtype, generator: torch.Generator) -> None:
    k, n = draw(generator, 1, 9), draw(generator, 1, 9)
    x, w = normal(generator, *leading(generator), k, dtype=dtype), normal(generator, k, n)
    close(apply(lambda x, w: x @ w, x, w.to(dtype)), (x.float() @ w.to(dtype).float()).to(dtype))


def test_embedding(generator: torch.Generator) -> None:
    ids = torch.randint(0, 11, leading(generator), generator=generator, dtype=torch.int32)
    table = normal(generator, 11, 6)
    assert torch.equal(apply(ops.embedding, ids, table), F.embedding(ids, table))


def test_expert_linear(generator: torch.Generator) -> None:
    b, k, n = leading(generator), draw(generator, 1, 9), draw(generator, 1, 9)
    x, w = normal(generator, *b, k), normal(generator, 3, n, k)
    ids = torch.randint(0, 3, b, generator=generator, dtype=torch.int32)
    expected = torch.einsum("...k,...nk->...n", x, w[ids.long()])
    close(apply(ops.expert_linear, x, w, ids), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype, generator: torch.Generator) -> None:
    d = draw(generator, 1, 70)
    x = normal(generator, *leading(generator), d, dtype=dtype) * 3
    r, weight = normal(generator, *x.shape, dtype=dtype), normal(generator, d, dtype=dtype)
    close(apply(ops.rms_norm, x, weight, eps=1e-5), F.rms_norm(x, (d,), weight, 1e-5))
    normed, total = apply(ops.add_rms_norm, x, r, weight, eps=1e-5)
    close(normed, F.rms_norm(x + r, (d,), weight, 1e-5))
    assert torch.equal(total, x + r)


def test_rms_norm_of_bf16_by_a_weight_in_f32(generator: torch.Generator) -> None:
    """One rounding, after the weight, as Gemma has it."""
    d = draw(generator, 1, 70)
    x = normal(generator, *leading(generator), d, dtype=torch.bfloat16)
    weight = 1 + normal(generator, d)
    wanted = F.rms_norm(x.float(), (d,), weight, 1e-5).bfloat16()
    close(apply(ops.rms_norm, x, weight, eps=1e-5), wanted)
    close(apply(ops.add_rms_norm, x, x, weight, eps=1e-5)[0],
          F.rms_norm((x + x).float(), (d,), weight, 1e-5).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: torch.dtype, generator: torch.Generator) -> None:
    d = draw(generator, 2, 70)
    x = normal(generator, *leading(generator), d, dtype=dtype) * 3 + 1
    weight, bias = (normal(generator, d, dtype=dtype) for _ in range(2))
    close(apply(ops.layer_norm, x, weight, eps=1e-5), F.layer_norm(x, (d,), weight, None, 1e-5))
    close(apply(ops.layer_norm, x, weight, bias, eps=1e-5),
          F.layer_norm(x, (d,), weight, bias, 1e-5))
    r = normal(generator, *x.shape, dtype=dtype)
    for given in ((), (bias,)):
        normed, total = apply(ops.add_layer_norm, x, r, weight, *given, eps=1e-5)
        close(normed, F.layer_norm(x + r, (d,), weight, *given or (None,), 1e-5))
        assert torch.equal(total, x + r)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu, "relu": F.relu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "softmax": lambda x: x.softmax(-1)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = normal(generator, *leading(generator), draw(generator, 1, 70), dtype=dtype) * 4
    close(apply(getattr(ops, name), x), ACTIVATIONS[name](x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activations(dtype: torch.dtype, generator: torch.Generator) -> None:
    gate = normal(generator, 3, 17, dtype=dtype) * 4
    up = normal(generator, 3, 17, dtype=dtype)
    close(apply(ops.swiglu, gate, up), F.silu(gate) * up)
    close(apply(ops.geglu, gate, up), F.gelu(gate) * up)
    close(apply(ops.geglu_tanh, gate, up), F.gelu(gate, approximate="tanh") * up)


def test_activations_far_from_zero_are_finite() -> None:
    x = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4])
    for name, expected in ACTIVATIONS.items():
        close(apply(getattr(ops, name), x), expected(x))


def test_search(generator: torch.Generator) -> None:
    n = draw(generator, 3, 40)
    x = normal(generator, *leading(generator), n)
    values, indices = apply(ops.topk, x, k=3)
    expected = x.topk(3, -1)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices.long(), expected.indices)
    assert torch.equal(apply(ops.argmax, x).long(), x.argmax(-1))


def test_search_takes_the_first_of_equals() -> None:
    x = torch.tensor([[1.0, 5.0, 5.0, 5.0]])
    assert apply(ops.argmax, x).tolist() == [1]
    assert apply(ops.topk, x, k=2)[1].tolist() == [[1, 2]]


B = Dim("batch")
X = Value(TensorType((B, 8), "f32"), name="x")
W = Value(TensorType((4, 8), "f32"), name="w")
V = Value(TensorType((8,), "f32"), name="v")
NARROW = Value(TensorType((4, 7), "f32"), name="w")
HALF = Value(TensorType((8,), "bf16"), name="h")

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.linear(X, NARROW), r"linear: w is f32\[4, 7\]: k is 7, but it has to be 8"),
    (lambda: ops.linear(X, V), r"w is f32\[8\], wanted w\[n, k\]"),
    (lambda: ops.linear(X, W, V), r"bias is f32\[8\]: n is 8, but it has to be 4"),
    (lambda: ops.linear(X), r"operand w is missing(.|\n)*linear\(x, w, bias=None\)"),
    (lambda: X @ W, "b is"),
    (lambda: Value(TensorType((2, 3, 7), "f32")) @ W, "x @ w: x is .*: 7 and 4 differ"),
    (lambda: ops.embedding(X, W), r"ids is f32\[batch, 8\], wanted i32"),
    (lambda: ops.rms_norm(X, V), r"attribute eps is missing(.|\n)*rms_norm\(x, weight, \*, eps\)"),
    (lambda: ops.rms_norm(X, HALF, eps=1e-5), r"weight is bf16\[8\], wanted f32"),
    (lambda: ops.layer_norm(X, NARROW, eps=1e-5), r"weight is f32\[4, 7\], wanted weight\[d\]"),
    (lambda: ops.swiglu(X, W), r"up is f32\[4, 8\]"),
    (lambda: ops.softmax(Value(TensorType((8,), "i32"))), "wanted a floating dtype"),
    (lambda: ops.topk(X, k=9), "k is 9, wanted 1 to 8"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_name_the_users_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        call()
    assert str(caught.value.loc) == f"test_ops_layers.py:{call.__code__.co_firstlineno}"
