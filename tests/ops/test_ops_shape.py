"""Views, concat, picking of rows and x[...] against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opcase import apply, draw, normal

from graphdsl import ops
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, TensorType, Value


def test_reshape_transpose_expand(generator: torch.Generator) -> None:
    a, b, c = (draw(generator, 1, 5) for _ in range(3))
    x = normal(generator, a, b, c)
    assert torch.equal(apply(ops.reshape, x, shape=(c, a * b)), x.reshape(c, a * b))
    order = tuple(torch.randperm(3, generator=generator).tolist())
    assert torch.equal(apply(ops.transpose, x, order=order), x.permute(order))
    column = x[:, :1]
    assert torch.equal(apply(ops.expand, column, shape=(a, 7, c)), column.expand(a, 7, c))


def test_slice_split_concat(generator: torch.Generator) -> None:
    sizes = tuple(draw(generator, 1, 5) for _ in range(3))
    axis = draw(generator, -3, 2)
    shape = [2, 3, 4]
    shape[axis] = sum(sizes)
    x = normal(generator, *shape)
    pieces = apply(ops.split, x, sizes=sizes, axis=axis)
    for ours, expected in zip(pieces, x.split(sizes, axis), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(apply(ops.concat, *pieces, axis=axis), x)
    ours = apply(ops.slice, x, axis=axis, start=sizes[0], size=sizes[1])
    assert torch.equal(ours, pieces[1])


def test_heads(generator: torch.Generator) -> None:
    heads, width = draw(generator, 1, 5), draw(generator, 1, 5)
    x = normal(generator, 2, 3, heads * width)
    split = apply(lambda x: ops.split_heads(x, heads), x)
    assert torch.equal(split, x.reshape(2, 3, heads, width))
    assert torch.equal(apply(ops.merge_heads, split), x)


KEYS: list[Any] = [
    0, -1, slice(None), slice(1, 3), slice(None, -1), slice(-2, None), ..., None,
    (0, 1), (slice(None), 2), (..., 0), (..., None), (None, ..., slice(0, 2)),
    (slice(None), None, slice(1, 2)), (1, ..., slice(3)), (0, 1, 2), (slice(0, 99),)]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_index_is_that_of_torch(key: Any) -> None:
    x = torch.arange(60.0).reshape(3, 4, 5)
    assert torch.equal(apply(lambda v: v[key], x), x[key])


def test_index_by_symbolic_sizes() -> None:
    tokens = Dim("tokens", 1, 64)
    x = Value(TensorType((2, tokens, 8), "f32"), name="x")
    assert x[:, -1].shape == (2, 8)
    assert x[:, :1].shape == (2, 1, 8)
    assert x[0].shape == (tokens, 8)
    assert str(x[:, tokens - 1:].type) == "f32[2, 1, 8]"
    assert ops.reshape(x, shape=(tokens, 4, 4)).shape == (tokens, 4, 4)
    assert str(ops.concat(x, x, axis=1).type) == "f32[2, 2*tokens, 8]"
    merged = ops.reshape(ops.concat(x, x, axis=1), shape=(4, tokens, 8))
    assert merged.shape == (4, tokens, 8)


def test_take_rows_and_gather(generator: torch.Generator) -> None:
    b, t, r, d = (draw(generator, 1, 5) for _ in range(4))
    x = normal(generator, b, t, d)
    rows = torch.randint(0, t, (b, r), generator=generator, dtype=torch.int32)
    expected = torch.stack([x[i, rows[i].long()] for i in range(b)])
    assert torch.equal(apply(ops.take_rows, x, rows), expected)
    table = normal(generator, 9, d)
    index = torch.randint(0, 9, (b, t), generator=generator, dtype=torch.int32)
    assert torch.equal(apply(ops.gather, table, index), table[index.long()])


def test_counting_and_repeating(generator: torch.Generator) -> None:
    assert torch.equal(apply(ops.arange, size=5), torch.arange(5, dtype=torch.int32))
    assert torch.equal(apply(ops.arange, size=3, dtype="f32"), torch.arange(3.0))
    b, t, g, d = (draw(generator, 1, 4) for _ in range(4))
    x = normal(generator, b, t, g, d)
    for axis in (0, 2, -1):
        expected = x.repeat_interleave(3, axis)
        assert torch.equal(apply(ops.repeat_interleave, x, n=3, axis=axis), expected)


TOKENS = Dim("tokens")
X = Value(TensorType((TOKENS, 8), "f32"), name="x")

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.reshape(X, shape=(TOKENS, 9)), "has not as many elements as"),
    (lambda: ops.reshape(X, shape=(-1, 8)), "wanted sizes above 0"),
    (lambda: ops.reshape(X, shape=8), "shape is 8, wanted a tuple of sizes"),
    (lambda: ops.transpose(X, order=(0, 0)), r"order is \(0, 0\)"),
    (lambda: ops.slice(X, axis=2, start=0, size=1), r"no axis 2 in \[tokens, 8\]"),
    (lambda: ops.slice(X, axis=1, start=7, size=2), "2 from 7 on may lie outside of 8"),
    (lambda: X[0:2], "2 from 0 on may lie outside of tokens"),
    (lambda: X[8:], "tokens \\+ -8 from 8 on may lie outside of tokens"),
    (lambda: X[:, 8:], r"size is \(0\), wanted sizes above 0"),
    (lambda: X[..., 8], "1 from 8 on may lie outside of 8"),
    (lambda: X[0, 0, 0], r"3 indices for f32\[tokens, 8\]"),
    (lambda: X[..., ::2], "slices of step 1"),
    (lambda: X[X], "take_rows and gather pick rows by tensors"),
    (lambda: ops.split(X, sizes=(4, 3), axis=1), "add up to 7, but axis 1 is 8"),
    (lambda: ops.expand(X, shape=(TOKENS, 16)), "cannot grow"),
    (lambda: ops.concat(X, X[..., :4], axis=0), "may differ in axis 0 alone"),
    (lambda: ops.concat(axis=0), "no operands given"),
    (lambda: ops.repeat_interleave(X, n=2, axis=2), r"no axis 2 in \[tokens, 8\]"),
    (lambda: ops.repeat_interleave(X, n=0, axis=1), "wanted sizes above 0"),
    (lambda: ops.arange(size=0), r"size is \(0\), wanted sizes above 0"),
    (lambda: ops.arange(size=4, dtype="bf16"), "wanted i32 or f32"),
    (lambda: ops.split_heads(X, 3), "3 heads in"),
    (lambda: ops.take_rows(X, X), r"take_rows: x is|rows is"),
    (lambda: ops.gather(X, X), r"index is f32\[tokens, 8\], wanted i32"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_name_the_users_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        call()
    assert str(caught.value.loc) == f"test_ops_shape.py:{call.__code__.co_firstlineno}"
