"""Views: where a value lies in memory, and what reshape, transpose, slice, split and expand make
of it without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphdsl.expr import ONE, ZERO, Poly, dense_strides, product
from graphdsl.ir import Layout, Node, Size, TensorType


@dataclass(frozen=True)
class Ref:
    """A strided piece of memory: a slot of the body's pointer table or a workspace buffer, an
    offset and strides in elements."""

    base: str
    dtype: str
    shape: tuple[Size, ...]
    strides: tuple[Poly, ...]
    offset: Poly = ZERO
    buffer: int | None = None
    """Number of the workspace buffer, or None for memory that the caller owns."""

    @property
    def is_dense(self) -> bool:
        """Contiguous, dims of size 1 aside."""
        wanted = dense_strides(self.shape)
        return all(size == 1 or a == b
                   for size, a, b in zip(self.shape, self.strides, wanted, strict=True))

    @property
    def unit_columns(self) -> bool:
        """Whether the last dim lies side by side."""
        return not self.shape or self.shape[-1] == 1 or self.strides[-1] == ONE


def leaf_ref(base: str, kind: TensorType, buffer: int | None = None) -> Ref:
    """A whole contiguous tensor; for a KV state its logical axes as they lie in memory. What those
    of a layout that is not strided mean (batch is the block of a pool, slot the one in a block, or
    rows end in a scale), only kernels that read KV states know."""
    strides = dense_strides(kind.shape)
    if kind.layout:
        strides = layout_strides(kind.shape, kind.layout)
    return Ref(base, kind.stored, kind.shape, strides, buffer=buffer)


def layout_strides(shape: tuple[Size, ...], layout: Layout) -> tuple[Poly, ...]:
    """Strides of the logical axes bsnd of a state stored in the layout's order, in elements of
    what is stored."""
    order = layout.permutation
    physical = dense_strides(layout.physical(shape))
    return tuple(physical[order.index(axis)] for axis in range(len(shape)))


def view(node: Node, ref: Ref) -> tuple[Ref, ...] | None:
    """The outputs of a view kernel on `ref`, or None where only a copy will do."""
    attr = node.attr
    match node.name:
        case "reshape":
            strides = reshaped_strides(ref, node.out_types[0].shape)
            if strides is None:
                return None
            return (replace(ref, shape=node.out_types[0].shape, strides=strides),)
        case "transpose":
            order = attr["order"]
            return (replace(ref, shape=node.out_types[0].shape,
                            strides=tuple(ref.strides[i % len(order)] for i in order)),)
        case "slice":
            axis = attr["axis"] % len(ref.shape)
            return (_sliced(ref, axis, attr["start"], node.out_types[0].shape),)
        case "split":
            return _split(ref, attr["axis"] % len(ref.shape), node)
        case "expand":
            return (_expanded(ref, node.out_types[0].shape),)
    raise AssertionError(f"{node.name} is no view")


def _sliced(ref: Ref, axis: int, start: Size, shape: tuple[Size, ...]) -> Ref:
    offset = ref.offset + ref.strides[axis] * start
    return replace(ref, shape=shape, offset=offset)


def _split(ref: Ref, axis: int, node: Node) -> tuple[Ref, ...]:
    at: Poly = ZERO
    pieces = []
    for kind in node.out_types:
        offset = ref.offset + ref.strides[axis] * at
        pieces.append(replace(ref, shape=kind.shape, offset=offset))
        at = at + kind.shape[axis]
    return tuple(pieces)


def _expanded(ref: Ref, shape: tuple[Size, ...]) -> Ref:
    lead = len(shape) - len(ref.shape)
    strides = [ZERO] * lead
    for have, want, stride in zip(ref.shape, shape[lead:], ref.strides, strict=True):
        strides.append(ZERO if have == 1 and want != 1 else stride)
    return replace(ref, shape=shape, strides=tuple(strides))


def reshaped_strides(ref: Ref, shape: Sequence[Size]) -> tuple[Poly, ...] | None:
    """Strides of `ref` seen in another shape, or None where that needs a copy.

    Old and new dims are matched in groups of equal product; the old dims of a group that is
    merged have to be contiguous among themselves.
    """
    old = [(Poly.of(s), st) for s, st in zip(ref.shape, ref.strides, strict=True) if s != 1]
    result: list[Poly] = []
    merged: list[tuple[Poly, Poly]] = []
    remaining = ONE
    for size in (Poly.of(s) for s in shape):
        if size == ONE:
            result.append(ZERO)
            continue
        while remaining.divided_by(size) is None:
            if not old:
                return None
            extra, stride = old.pop(0)
            merged.append((extra, stride))
            remaining = remaining * extra
        if not _contiguous(merged):
            return None
        remaining = remaining.divided_by(size) or ONE
        result.append(merged[-1][1] * remaining)
        merged = [] if remaining == ONE else [(remaining, merged[-1][1])]
    return tuple(result) if not old and remaining == ONE else None


def concat_pieces(node: Node, whole: Ref) -> list[Ref]:
    """Where every operand of a concat lies in its result."""
    axis, at, pieces = node.attr["axis"] % len(whole.shape), Poly.of(0), []
    for value in node.inputs:
        offset = whole.offset + whole.strides[axis] * at
        pieces.append(Ref(whole.base, whole.dtype, value.shape, whole.strides, offset,
                          whole.buffer))
        at = at + value.shape[axis]
    return pieces


def _contiguous(dims: Sequence[tuple[Poly, Poly]]) -> bool:
    return all(dims[i][1] == dims[i + 1][0] * dims[i + 1][1] for i in range(len(dims) - 1))


def collapsed_rows(shape: Sequence[Size], strides: Sequence[Sequence[Poly]],
                   ) -> tuple[tuple[Poly, ...], tuple[tuple[Poly, ...], ...]]:
    """The fewest row dims that serve operands with these strides: neighbours are merged where
    every operand steps through them evenly. Gives the sizes and every operand's strides."""
    sizes: list[Poly] = []
    kept: list[list[Poly]] = [[] for _ in strides]
    for axis, size in enumerate(Poly.of(s) for s in shape):
        if size == ONE:
            continue
        if sizes and all(k[-1] == s[axis] * size for k, s in zip(kept, strides, strict=True)):
            sizes[-1] = sizes[-1] * size
            for k, s in zip(kept, strides, strict=True):
                k[-1] = s[axis]
        else:
            sizes.append(size)
            for k, s in zip(kept, strides, strict=True):
                k.append(s[axis])
    return tuple(sizes), tuple(tuple(k) for k in kept)


__all__ = ["Ref", "collapsed_rows", "concat_pieces", "layout_strides", "leaf_ref", "product",
           "reshaped_strides", "view"]
