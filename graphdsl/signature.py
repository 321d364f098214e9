"""Signatures: "x[*b, k], w[n, k] -> y[*b, n]" is the shape and dtype rule of an op.

A name in brackets binds a size, `*b` any number of sizes, a number stands for itself. Operands
share the dtype T unless one is marked: `positions[b, t]:i32`, `mask[b, t]:bool`, `scale[n]:f32`.
`bias?[n]` may be absent. In the signature of a Layer `k[batch, slots, heads, dim]@bnsd` is a KV
cache of that layout.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.ir import BUILT, DTYPES, FLOATS, Layout, Size, TensorType
from graphdsl.layout import LAYOUTS

_TERM = re.compile(r"\s*(\w+)(\?)?\[([^\]]*)\](?::(\w+))?(?:@([^\s,]*))?\s*(,|$)")
_DIM = re.compile(r"\*?[^\W\d]\w*|\d+")


@dataclass(frozen=True)
class Term:
    """One operand or result of a signature."""

    name: str
    dims: tuple[str, ...]
    dtype: str = "T"
    optional: bool = False
    layout: Layout | None = None

    def __str__(self) -> str:
        dtype = "" if self.dtype == "T" else f":{self.dtype}"
        layout = f"@{self.layout}" if self.layout else ""
        return f"{self.name}{'?' if self.optional else ''}[{', '.join(self.dims)}]{dtype}{layout}"


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Term, ...]
    outputs: tuple[Term, ...]

    def __str__(self) -> str:
        return " -> ".join(", ".join(map(str, terms)) for terms in (self.inputs, self.outputs))

    def check(self, types: Sequence[TensorType],
              given: Sequence[str] | None = None) -> tuple[TensorType, ...]:
        """The types of the results. Raises GraphError (without a line) where an operand's rank,
        size or dtype does not fit those before it."""
        binding = Binding({}, {})
        for term, found in zip(self.present(types, given), types, strict=True):
            binding.bind(term, found)
        return tuple(binding.result(term) for term in self.outputs)

    def present(self, types: Sequence[TensorType], given: Sequence[str] | None) -> list[Term]:
        """The terms of the operands that are there, in order."""
        if given is not None:
            present = [t for t in self.inputs if not t.optional or t.name in given]
        else:
            spare = len(types) - sum(not t.optional for t in self.inputs)
            present = []
            for term in self.inputs:
                spare -= term.optional
                if not term.optional or spare >= 0:
                    present.append(term)
        if len(present) != len(types):
            raise GraphError(f"{len(types)} operands given, {len(present)} wanted")
        return present


@dataclass(frozen=True)
class Binding:
    """What the names of a signature stand for so far."""

    sizes: dict[str, Any]
    dtypes: dict[str, str]

    def bind(self, term: Term, found: TensorType) -> None:
        star = next((i for i, d in enumerate(term.dims) if d.startswith("*")), None)
        extra = len(found.shape) - len(term.dims) + (star is not None)
        if extra < 0 or (star is None and extra > 0):
            raise GraphError(f"{term.name} is {found}, wanted {term}{self._known(term)}")
        at = 0
        for dim in term.dims:
            width = extra if dim.startswith("*") else 1
            self._bind_dim(term, found, dim, found.shape[at:at + width])
            at += width
        self._bind_dtype(term, found)

    def _bind_dim(self, term: Term, found: TensorType, dim: str, sizes: tuple[Size, ...]) -> None:
        wanted = (int(dim),) if dim.isdigit() else self.sizes.setdefault(dim, sizes)
        if wanted != sizes:
            was = ", ".join(map(str, wanted)) or "nothing"
            now = ", ".join(map(str, sizes)) or "nothing"
            raise GraphError(f"{term.name} is {found}: {dim} is {now}, but it has to be {was}"
                             f"{self._known(term)}")

    def _bind_dtype(self, term: Term, found: TensorType) -> None:
        if term.dtype in DTYPES:
            wanted = term.dtype
        else:
            wanted = self.dtypes.setdefault(term.dtype, found.dtype)
            if term.dtype == "T" and found.dtype not in FLOATS:
                raise GraphError(f"{term.name} is {found}, wanted a floating dtype")
        if wanted != found.dtype:
            raise GraphError(f"{term.name} is {found}, wanted {wanted}",
                             hint=f'insert cast({term.name}, dtype="{wanted}")')

    def _known(self, term: Term) -> str:
        """The sizes that this term could have taken from the operands before it."""
        known = [f"{d} = {', '.join(map(str, self.sizes[d]))}" for d in term.dims
                 if d in self.sizes]
        return f" ({'; '.join(known)})" if known else ""

    def result(self, term: Term) -> TensorType:
        shape: list[Size] = []
        for dim in term.dims:
            shape += [int(dim)] if dim.isdigit() else self.sizes[dim]
        return TensorType(tuple(shape), self.dtypes.get(term.dtype, term.dtype))


def parse_terms(text: str) -> tuple[Term, ...]:
    """The terms of one side. Raises GraphError on text that is not a list of terms."""
    terms, at = [], 0
    while at < len(text.rstrip()):
        match = _TERM.match(text, at)
        if not match:
            raise GraphError(f"signature: cannot read {text[at:].strip()!r}",
                             hint="write x[batch, tokens, hidden], positions[batch, tokens]:i32")
        name, optional, axes, dtype, layout, _ = match.groups()
        if dtype and dtype not in DTYPES and not re.fullmatch("[A-Z]", dtype):
            raise GraphError(f"signature: no dtype {dtype!r}", hint=f"dtypes: {', '.join(BUILT)}, "
                             "or one capital letter for the same dtype in several places")
        dims = tuple(d.strip() for d in axes.split(",") if d.strip())
        _check_dims(name, dims)
        terms.append(Term(name, dims, dtype or "T", bool(optional),
                          None if layout is None else _layout(name, dims, layout)))
        at = match.end()
    return tuple(terms)


def _check_dims(name: str, dims: tuple[str, ...]) -> None:
    """Raises GraphError for an axis that is no name: it would be a size of that text."""
    odd = next((d for d in dims if not _DIM.fullmatch(d)), None)
    if odd is not None:
        raise GraphError(f"signature: {odd!r} in {name}[{', '.join(dims)}] is neither a name nor a "
                         "number", hint="a size that is computed is a field or property of the "
                         "config: give it a name there")


def _layout(name: str, dims: tuple[str, ...], text: str) -> Layout:
    """The layout of a cache. Raises GraphError for text that is none, and for other axes."""
    if len(dims) != len("bsnd"):
        raise GraphError(f"signature: {name}[{', '.join(dims)}]@{text} has {len(dims)} axes",
                         hint="a cache is [batch, slots, kv_heads, head_dim], whatever its layout")
    try:
        return Layout.parse(text)
    except ValueError:
        raise GraphError(f"signature: no layout {text!r}", hint=LAYOUTS) from None


def parse_signature(text: str) -> Signature:
    """Both sides of "... -> ..."."""
    left, _, right = text.partition("->")
    return Signature(parse_terms(left), parse_terms(right))
