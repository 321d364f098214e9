"""Identities: what takes the place of what, that the numbers stay, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from passcase import CPU, assert_same, graph_of, leaf, names

from graphdsl.ir import Dim, Value
from graphdsl.ops.math import (
    abs,
    cast,
    exp,
    less,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    neg,
    pow,
    tanh,
    where,
)
from graphdsl.ops.shape import concat, expand, reshape, slice, split, transpose
from graphdsl.passes.identities import simplified
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text

TOKENS = Dim("tokens")
X, Y, ROW = leaf("x", TOKENS, 8), leaf("y", TOKENS, 8), leaf("row", 1, 8)
HALF = leaf("half", TOKENS, 8, dtype="bf16")
POSITIVE = exp(X)
"""For powers that take no negative number."""


def both() -> tuple[Value, ...]:
    return tuple(split(X, sizes=(2, 3, 3), axis=1))


SIMPLER: dict[str, tuple[Callable[[], Value], list[str]]] = {
    "x + 0": (lambda: 0.0 + X, []),
    "x + -y": (lambda: -Y + X, ["sub"]),
    "x - 0": (lambda: X - 0.0, []),
    "x - -y": (lambda: X - -Y, ["add"]),
    "x * 1": (lambda: 1.0 * X, []),
    "x * -1": (lambda: X * -1.0, ["neg"]),
    "x / 1": (lambda: X / 1.0, []),
    "x ** 1": (lambda: pow(X, 1.0), []),
    "x ** 2": (lambda: pow(X, 2.0), ["mul"]),
    "x ** 3": (lambda: pow(X, 3.0), ["mul", "mul"]),
    "x ** 0.5": (lambda: pow(POSITIVE, 0.5), ["exp", "sqrt"]),
    "x ** -0.5": (lambda: pow(POSITIVE, -0.5), ["exp", "rsqrt"]),
    "x ** -1": (lambda: pow(POSITIVE, -1.0), ["constant", "exp", "div"]),
    "-(-x)": (lambda: neg(-X), []),
    "||x||": (lambda: abs(abs(X)), ["abs"]),
    "|-x|": (lambda: abs(-X), ["abs"]),
    "max(x, x)": (lambda: maximum(X, X), []),
    "min(x, x)": (lambda: minimum(X, X), []),
    "x or x": (lambda: where(X < Y, X, X), []),
    "where not": (lambda: where(logical_not(X < Y), X, Y), ["less", "where"]),
    "not not": (lambda: logical_not(logical_not(X < Y)), ["less"]),
    "c and c": (lambda: logical_and(*[less(X, Y)] * 2), ["less"]),
    "c or c": (lambda: logical_or(*[less(X, Y)] * 2), ["less"]),
    "cast to the same": (lambda: cast(X, dtype="f32"), []),
    "cast there and back": (lambda: cast(cast(HALF, dtype="f32"), dtype="bf16"), []),
    "reshape": (lambda: reshape(reshape(X, shape=(TOKENS, 2, 4)), shape=(TOKENS, 8)), []),
    "reshapes": (lambda: reshape(reshape(X, shape=(TOKENS, 2, 4)), shape=(TOKENS, 4, 2)),
                 ["reshape"]),
    "transposes": (lambda: transpose(transpose(X, order=(1, 0)), order=(1, 0)), []),
    "expand": (lambda: expand(X, shape=(TOKENS, 8)), []),
    "expands": (lambda: expand(expand(leaf("r", 1, 1), shape=(1, 8)), shape=(4, 8)),
                ["expand"]),
    "a row with axes of 1": (lambda: X * reshape(leaf("w", 8), shape=(1, 8)), ["mul"]),
    "an expanded row": (lambda: expand(ROW, shape=(TOKENS, 8)) - X, ["sub"]),
    "both expanded": (lambda: expand(ROW, shape=(4, 8)) * expand(leaf("r", 1, 8), shape=(4, 8)),
                      ["expand", "mul"]),
    "all of it": (lambda: X[:, 0:8], []),
    "slices": (lambda: X[:, 2:8][:, 1:4], ["slice"]),
    "slice of a concat": (lambda: concat(X, Y, axis=1)[:, 9:12], ["slice"]),
    "operand of a concat": (lambda: concat(X, Y, axis=-1)[:, 8:16], []),
    "split of a concat": (lambda: split(concat(X, Y, axis=1), sizes=(8, 8))[1], []),
    "concat of all pieces": (lambda: concat(*both(), axis=-1), []),
    "concat of some pieces": (lambda: concat(*both()[1:], axis=1), ["slice"]),
    "concat of slices": (lambda: concat(X[:, 0:2], X[:, 2:5], Y, axis=1), ["slice", "concat"]),
    "concats": (lambda: concat(concat(X, Y, axis=1), X, axis=1), ["concat"]),
    "one operand": (lambda: concat(X, axis=1), []),
    "several at once": (lambda: -(-(X * 1.0) + 0.0) - -(Y / 1.0), ["add"]),
}


@pytest.mark.parametrize("case", SIMPLER)
def test_simpler(case: str) -> None:
    make, wanted = SIMPLER[case]
    before = graph_of(make())
    printed = text(before)
    after = simplified(before)
    assert names(after) == wanted
    assert text(before) == printed
    assert text(simplified(after)) == text(after)
    assert_same(before, after)
    run_pipeline(graph_of(tanh(cast(make(), dtype="f32"))), CPU, verify=True)


LEFT: dict[str, Callable[[], Value]] = {
    "x * 0 is nan where x is": lambda: X * 0.0,
    "x - x is nan where x is": lambda: X - X,
    "x / x is nan at 0": lambda: X / X,
    "x ** 4": lambda: pow(X, 4.0),
    "x + 0 of another shape": lambda: ROW + leaf("zero", TOKENS, 1) * 1e-3,
    "max of two": lambda: maximum(X, Y),
    "-|x|": lambda: -abs(X),
    "cast by way of less": lambda: cast(cast(X, dtype="bf16"), dtype="f32"),
    "a number cut off": lambda: cast(cast(X, dtype="i32"), dtype="f32"),
    "the pieces in another order": lambda: concat(*both()[::-1], axis=1),
    "the pieces along another axis": lambda: concat(both()[1], both()[2], axis=0),
    "slices with a gap": lambda: concat(X[:, 0:2], X[:, 3:5], axis=1),
    "a slice across the seam": lambda: concat(X, Y, axis=1)[:, 6:10],
    "a slice along another axis": lambda: concat(X[0:1], Y[0:1], axis=0)[:, 0:4],
    "slices along two axes": lambda: X[0:1][:, 2:4],
    "a concat along another axis": lambda: concat(concat(X, Y, axis=1), concat(X, Y, axis=1),
                                                  axis=0),
    "split in another way": lambda: split(concat(X, Y, axis=1), sizes=(6, 10))[0],
    "axes of 1 in between": lambda: reshape(leaf("w", TOKENS, 8), shape=(TOKENS, 1, 8)) * leaf(
        "z", TOKENS, 4, 8),
    "axes of 1 that the result has": lambda: reshape(leaf("w", 8), shape=(1, 8)) * 2.0,
    "one transpose": lambda: transpose(X, order=(1, 0)),
    "a whole cut of unknown size": lambda: slice(concat(X, Y, axis=0), axis=0, start=TOKENS - 1,
                                                 size=TOKENS),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(case: str) -> None:
    before = graph_of(LEFT[case]())
    assert simplified(before) is before


def test_operand_of_symbolic_size() -> None:
    """Where an operand of a concat begins is a size of the graph."""
    both = concat(X, Y, axis=0)
    assert simplified(graph_of(both[TOKENS:])).outputs == (Y,)


def test_a_view_of_another_type_is_not_dropped() -> None:
    """max(x, x) has the type of x, but where(c, x, x) may be wider."""
    wide = graph_of(where(leaf("c", TOKENS, 8, dtype="bool"), ROW, ROW))
    assert simplified(wide) is wide
