"""Pointwise kernels, reductions and casts against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opcase import apply, draw, normal
from torch import Tensor

from graphdsl import ops
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, TensorType, Value
from graphdsl.reference import run

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "tanh": torch.tanh, "erf": torch.erf,
    "sin": torch.sin, "cos": torch.cos, "floor": torch.floor}
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "maximum": torch.maximum, "minimum": torch.minimum}
COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "less": torch.lt, "less_equal": torch.le, "greater": torch.gt, "greater_equal": torch.ge,
    "equal": torch.eq}


def shapes(generator: torch.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast, of different rank."""
    full = tuple(draw(generator, 1, 5) for _ in range(draw(generator, 1, 4)))
    part = [1 if draw(generator, 0, 2) == 0 else s for s in full]
    return full, tuple(part[draw(generator, 0, len(part) - 1):])


@pytest.mark.parametrize("name", [*UNARY, *POSITIVE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unary(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = normal(generator, *shapes(generator)[0], dtype=dtype)
    x = x.abs() + 0.1 if name in POSITIVE else x
    expected = (UNARY | POSITIVE)[name](x)
    assert torch.equal(apply(getattr(ops, name), x), expected)


@pytest.mark.parametrize("name", [*BINARY, *COMPARISONS])
def test_binary(name: str, generator: torch.Generator) -> None:
    a, b = shapes(generator)
    x, y = normal(generator, *a), normal(generator, *b)
    assert torch.equal(apply(getattr(ops, name), x, y), (BINARY | COMPARISONS)[name](x, y))
    assert torch.equal(apply(getattr(ops, name), y, x), (BINARY | COMPARISONS)[name](y, x))


def test_pow(generator: torch.Generator) -> None:
    a, b = shapes(generator)
    x, y = normal(generator, *a).abs(), normal(generator, *b)
    assert torch.equal(apply(ops.pow, x, y), x ** y)
    torch.testing.assert_close(apply(lambda x, y: 2.0 ** y - x ** 3, x, y), 2.0 ** y - x ** 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_numbers_take_the_dtype_of_the_tensor(dtype: torch.dtype) -> None:
    x = torch.tensor([-3, 1, 4]).to(dtype)
    assert torch.equal(apply(lambda x: 2 - x * 3 + 1, x), 2 - x * 3 + 1)
    assert apply(lambda x: x + 1, x).dtype == dtype


def test_logical_and_where(generator: torch.Generator) -> None:
    a, b = shapes(generator)
    x, y = normal(generator, *a), normal(generator, *b)
    p, q = x > 0, y > 0
    assert torch.equal(apply(ops.logical_and, p, q), p & q)
    assert torch.equal(apply(ops.logical_or, p, q), p | q)
    assert torch.equal(apply(ops.logical_not, p), ~p)
    assert torch.equal(apply(ops.where, q, x, y), torch.where(q, x, y))
    assert torch.equal(apply(ops.where, p, x, 0.5), torch.where(p, x, 0.5))


@pytest.mark.parametrize("name", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_reductions(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = (normal(generator, *shapes(generator)[0]) * 9).to(dtype)
    expected = {"sum": lambda: x.sum(-1, keepdim=True, dtype=dtype),
                "max": lambda: x.amax(-1, keepdim=True),
                "min": lambda: x.amin(-1, keepdim=True)}[name]()
    assert torch.equal(apply(getattr(ops, f"reduce_{name}"), x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_is_made_in_f32(dtype: torch.dtype, generator: torch.Generator) -> None:
    x = normal(generator, 3, draw(generator, 1, 700), dtype=dtype) + 1
    expected = x.float().mean(-1, keepdim=True).to(dtype)
    torch.testing.assert_close(apply(ops.mean, x), expected)


def test_mean_over_a_symbolic_size() -> None:
    x = Value(TensorType((3, Dim("tokens")), "f32"), name="x")
    graph = Graph("test", (x,), (), (), (ops.mean(x),))
    for tokens in (1, 7):
        given = torch.arange(3.0 * tokens).reshape(3, tokens)
        assert torch.equal(run(graph, [given], {})[0], given.mean(-1, keepdim=True))


@pytest.mark.parametrize("to", ["f32", "bf16", "f16", "i32", "bool"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.int32, torch.bool])
def test_cast(given: torch.dtype, to: str) -> None:
    names = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i32": torch.int32,
             "bool": torch.bool}
    x = torch.tensor([-2.75, -0.0, 0.3, 1.00390625, 77.7]).to(given)
    assert torch.equal(apply(ops.cast, x, dtype=to), x.to(names[to]))


def test_exact_runs_in_f64() -> None:
    x = torch.full((1, 3), 1 / 3)
    exact = apply(ops.softmax, x, exact=True)
    assert exact.dtype == torch.float64
    assert float(abs(exact - 1 / 3).max()) < 1e-16


TOKENS = Dim("tokens")
F32 = Value(TensorType((TOKENS, 8), "f32"), name="x")
BF16 = Value(TensorType((TOKENS, 8), "bf16"), name="y")
I32 = Value(TensorType((TOKENS,), "i32"), name="p")
BOOL = Value(TensorType((TOKENS, 8), "bool"), name="m")

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: F32 + BF16, r"add: f32\[tokens, 8\] and bf16\[tokens, 8\] have different dtypes"),
    (lambda: F32 + Value(TensorType((TOKENS, 7), "f32")), "8 and 7 differ"),
    (lambda: F32 * Value(TensorType((Dim("slots"), 8), "f32")), "tokens and slots differ"),
    (lambda: BOOL + BOOL, r"an operand is bool\[tokens, 8\], wanted f32, bf16, f16, i32"),
    (lambda: I32 / 2, r'div: .*i32\[tokens\](.|\n)*hint: insert cast\(..., dtype="f32"\)'),
    (lambda: I32 * 0.5, "the number 0.5 meets a value of i32"),
    (lambda: ops.where(F32, F32, F32), r"the condition is f32\[tokens, 8\], wanted bool"),
    (lambda: ops.logical_not(F32), "wanted bool"),
    (lambda: ops.cast(F32, dtype="f64"), "no dtype 'f64'"),
    (lambda: ops.cast(F32, dtype="float"), "no dtype 'float'"),
    (lambda: ops.cast(F32), r"attribute dtype is missing(.|\n)*cast\(x, \*, dtype\)"),
    (lambda: ops.exp(F32, base=2), "no attribute base"),
    (lambda: ops.exp(), "operand x is missing"),
    (lambda: ops.exp(F32, F32), "2 operands given, at most 1 taken"),
    (lambda: ops.rms_norm(F32, F32, 1e-5), "3 operands given, at most 2 taken; by name: eps"),
    (lambda: ops.add(F32, "two"), "an operand is str 'two'"),
    (lambda: ops.concat([F32, F32], axis=0), r"concat: an operand is list .*\n.*one by one"),
    (lambda: ops.reduce_sum(Value(TensorType((), "f32"))), "has no axis to reduce"),
    (lambda: ops.mean(I32), "wanted a floating dtype"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_name_the_users_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        call()
    assert str(caught.value.loc) == f"test_ops_math.py:{call.__code__.co_firstlineno}"


def test_every_op_is_documented() -> None:
    assert ops.__all__ == sorted(ops.__all__)
    for name in ops.__all__:
        assert getattr(ops, name).__doc__, name
