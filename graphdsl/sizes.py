"""Sizes, known and symbolic, and the dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOATS = ("f32", "bf16", "f16", "f64")
DTYPES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "i32": 4, "bool": 1, "int8": 1}
"""Bytes of every dtype. f64 is for the reference alone, int8 for what is stored."""
BUILT = tuple(name for name in DTYPES if name not in ("f64", "int8"))
"""The dtypes that a graph may have."""


@dataclass(frozen=True)
class Dim:
    """A bounded symbolic size.

    A plan dim (`source` is empty) is bound when a plan is made. A step dim is read at every step
    from the first element of the input named by `source`; buffers are sized by its `hi`.
    """

    name: str
    lo: int = 1
    hi: int = 1 << 20
    source: str = ""

    def __str__(self) -> str:
        return self.name

    def __add__(self, other: Size) -> Size:
        return add_sizes(self, other)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return add_sizes(self, scaled(other, -1))

    def __mul__(self, factor: int) -> Size:
        return scaled(self, factor)

    __rmul__ = __mul__


@dataclass(frozen=True)
class Affine:
    """A sum of dims with whole coefficients, and a constant: `past + tokens`, `2*tokens + 1`."""

    terms: tuple[tuple[Dim, int], ...]
    const: int

    def __str__(self) -> str:
        parts = [dim.name if k == 1 else f"{k}*{dim.name}" for dim, k in self.terms]
        return " + ".join(parts + ([str(self.const)] if self.const else []))

    def __add__(self, other: Size) -> Size:
        return add_sizes(self, other)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return add_sizes(self, scaled(other, -1))

    def __mul__(self, factor: int) -> Size:
        return scaled(self, factor)

    __rmul__ = __mul__


Size = int | Dim | Affine


def terms(size: Size) -> dict[Dim, int]:
    """The coefficient of every dim in `size`."""
    if isinstance(size, Dim):
        return {size: 1}
    return dict(size.terms) if isinstance(size, Affine) else {}


def constant(size: Size) -> int:
    """The part of `size` that depends on no dim."""
    if isinstance(size, Dim):
        return 0
    return size.const if isinstance(size, Affine) else size


def affine(coefficients: Mapping[Dim, int], const: int) -> Size:
    """The simplest size with these terms: an int or a Dim where it is one."""
    kept = {dim: k for dim, k in coefficients.items() if k}
    if not kept:
        return const
    if const == 0 and list(kept.values()) == [1]:
        return next(iter(kept))
    return Affine(tuple(sorted(kept.items(), key=lambda item: item[0].name)), const)


def add_sizes(a: Size, b: Size) -> Size:
    total = terms(a)
    for dim, k in terms(b).items():
        total[dim] = total.get(dim, 0) + k
    return affine(total, constant(a) + constant(b))


def scaled(size: Size, factor: int) -> Size:
    return affine({dim: k * factor for dim, k in terms(size).items()}, constant(size) * factor)


def size_value(size: Size, dims: Mapping[str, int]) -> int:
    """The number that `size` stands for; KeyError when a dim has no value."""
    return sum(k * dims[dim.name] for dim, k in terms(size).items()) + constant(size)


def upper_bound(size: Size) -> int:
    """The largest number that `size` can stand for."""
    return constant(size) + sum(k * (d.hi if k > 0 else d.lo) for d, k in terms(size).items())
