"""Sizes and shapes, known and symbolic, as the checks compare them."""

from __future__ import annotations

from math import gcd

from graphdsl.ir import Size, add_sizes, affine, constant, scaled, terms

from .atb import QUERIES, ROWS

Shape = tuple[Size, ...]
Shapes = tuple[Shape, ...]

_ONE = {QUERIES: ROWS}
"""PagedAttention sees every row as a sequence, so both dims are one number."""


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are the same number in every call."""
    return add_sizes(_spelled(a), scaled(_spelled(b), -1)) == 0


def _spelled(size: Size) -> Size:
    return affine({_ONE.get(dim, dim): k for dim, k in terms(size).items()}, constant(size))


def same_shape(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def divided(size: Size, by: int) -> Size | None:
    """`size` over `by`, or None where that may leave a rest."""
    parts = terms(size)
    if by < 1 or any(part % by for part in [*parts.values(), constant(size)]):
        return None
    return affine({dim: k // by for dim, k in parts.items()}, constant(size) // by)


def is_multiple(size: Size, of: int) -> bool:
    return divided(size, of) is not None


def counted(shape: Shape) -> tuple[int, tuple[Size, ...]]:
    """The elements of a shape: a number and its sizes that are none, less what divides them, which
    is in the number: 4*rows is 4 and rows."""
    product = 1
    symbols: list[Size] = []
    for size in shape:
        factor = gcd(constant(size), *terms(size).values())
        product *= factor
        if not isinstance(size, int):
            symbols.append(affine({d: k // factor for d, k in terms(size).items()},
                                  constant(size) // factor))
    return product, tuple(symbols)


def view_problem(shape: Shape, view: Shape) -> str:
    """Why a tensor cannot be seen in the shape `view`; empty where it can. Of several sizes that
    are no numbers the product may be one: sequences * tokens is rows."""
    have, symbols = counted(shape)
    want, rest = counted(view)
    if len(rest) > 1:
        return "more than one of its sizes is no number"
    if not rest:
        return f"it has {want} elements" if symbols or have != want else ""
    if have % want:
        return f"{want} does not divide {have}"
    left = scaled(symbols[0], have // want) if symbols else have // want
    fits = have == want if len(symbols) > 1 else same(left, rest[0])
    return "" if fits else f"{left} is left for {rest[0]}"


def text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
