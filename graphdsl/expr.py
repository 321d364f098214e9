"""Polynomials over dims: element counts, strides and offsets of tensors of symbolic shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphdsl.ir import Size, constant, terms

Monomial = tuple[str, ...]
"""Names of dims, sorted; () is the constant term."""


def c_name(dim: str) -> str:
    """A dim's name in generated code, where it can be no keyword and no name of ours."""
    return f"{dim}_"


@dataclass(frozen=True)
class Poly:
    """A sum of products of dims, such as 64*batch*tokens + 32. Equal polynomials compare equal."""

    items: tuple[tuple[Monomial, int], ...] = ()

    @staticmethod
    def of(size: Size | Poly) -> Poly:
        if isinstance(size, Poly):
            return size
        parts: dict[Monomial, int] = {(dim.name,): k for dim, k in terms(size).items()}
        return _poly({**parts, (): constant(size)})

    def __add__(self, other: Size | Poly) -> Poly:
        total = Counter(dict(self.items))
        total.update(dict(Poly.of(other).items))
        return _poly(total)

    def __mul__(self, other: Size | Poly) -> Poly:
        total: Counter[Monomial] = Counter()
        for a, i in self.items:
            for b, j in Poly.of(other).items:
                total[tuple(sorted(a + b))] += i * j
        return _poly(total)

    @property
    def number(self) -> int | None:
        """The value, where no dim is involved."""
        if not self.items:
            return 0
        return self.items[0][1] if len(self.items) == 1 and self.items[0][0] == () else None

    def divided_by(self, other: Poly) -> Poly | None:
        """The exact quotient by a single term, or None."""
        if len(other.items) != 1:
            return Poly.of(1) if self == other else None
        names, factor = other.items[0]
        result: dict[Monomial, int] = {}
        for mono, k in self.items:
            left = Counter(mono)
            left.subtract(names)
            if k % factor or any(n < 0 for n in left.values()):
                return None
            result[tuple(sorted(left.elements()))] = k // factor
        return _poly(result)

    def value(self, dims: Mapping[str, int]) -> int:
        """The number it stands for; KeyError when a dim has no value."""
        total = 0
        for mono, k in self.items:
            for name in mono:
                k *= dims[name]
            total += k
        return total

    def __str__(self) -> str:
        """C text, parenthesised where it is a sum."""
        parts = [" * ".join([*([str(k)] if k != 1 or not mono else []), *map(c_name, mono)])
                 for mono, k in self.items]
        text = " + ".join(parts) or "0"
        return f"({text})" if len(parts) > 1 else text


def _poly(parts: Mapping[Monomial, int]) -> Poly:
    return Poly(tuple(sorted((m, k) for m, k in parts.items() if k)))


def product(sizes: Iterable[Size | Poly]) -> Poly:
    total = Poly.of(1)
    for size in sizes:
        total = total * size
    return total


def dense_strides(shape: Iterable[Size | Poly]) -> tuple[Poly, ...]:
    """Strides, in elements, of a contiguous tensor."""
    sizes = list(shape)
    return tuple(product(sizes[i + 1:]) for i in range(len(sizes)))


ONE, ZERO = Poly.of(1), Poly.of(0)


__all__ = ["ONE", "ZERO", "Poly", "c_name", "dense_strides", "product"]
