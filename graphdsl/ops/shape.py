"""Views, concat and the kernels that pick rows. An axis may be given from the end (-1)."""

from __future__ import annotations

import builtins
import math
from collections import Counter
from collections.abc import Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import (
    Affine,
    Dim,
    Size,
    TensorType,
    Value,
    add_sizes,
    constant,
    scaled,
    terms,
    upper_bound,
)
from graphdsl.lazy import torch, torch_dtype
from graphdsl.op import kernel, operation, user_loc

if TYPE_CHECKING:
    from torch import Tensor

Types = Sequence[TensorType]
Attributes = dict[str, Any]


def _axis(axis: Any, shape: tuple[Size, ...]) -> int:
    """The axis counted from the front. Raises GraphError if the shape has no such axis."""
    if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        raise GraphError(f"no axis {axis} in [{', '.join(map(str, shape))}]")
    return axis % len(shape)


def _sizes(sizes: Any, what: str) -> tuple[Size, ...]:
    """`sizes` if they are sizes of a tensor. Raises GraphError otherwise."""
    if not isinstance(sizes, tuple) or not all(isinstance(s, int | Dim | Affine) for s in sizes):
        raise GraphError(f"{what} is {sizes!r}, wanted a tuple of sizes")
    if any(isinstance(s, int) and s < 1 for s in sizes):
        raise GraphError(f"{what} is ({', '.join(map(str, sizes))}), wanted sizes above 0",
                         hint="write x.shape[i] for a size that x has")
    return sizes


def _never_negative(size: Size) -> bool:
    return upper_bound(scaled(size, -1)) <= 0


def _with(shape: tuple[Size, ...], axis: int, size: Size) -> tuple[Size, ...]:
    return (*shape[:axis], size, *shape[axis + 1:])


def _elements(shape: tuple[Size, ...]) -> tuple[int, Counter[Size]]:
    """The product of the sizes: its whole part, and how often every symbolic size is in it."""
    known, symbolic = 1, Counter[Size]()
    for size in shape:
        found = terms(size)
        factor = math.gcd(constant(size), *found.values())
        known *= factor
        if found:
            rest = {dim: k // factor for dim, k in found.items()}
            symbolic[_affine(rest, constant(size) // factor)] += 1
    return known, symbolic


def _affine(coefficients: dict[Dim, int], const: int) -> Size:
    total: Size = const
    for dim, k in coefficients.items():
        total = add_sizes(total, scaled(dim, k))
    return total


def _reshaped(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    shape = _sizes(attrs["shape"], "shape")
    new = TensorType(shape, types[0].dtype)
    if _elements(shape) != _elements(types[0].shape):
        raise GraphError(f"x is {types[0]}, which has not as many elements as {new}")
    return (new,)


def _transposed(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    order, shape = attrs["order"], types[0].shape
    if not isinstance(order, tuple) or sorted(order) != list(range(len(shape))):
        raise GraphError(f"x is {types[0]} and order is {order!r}",
                         hint=f"wanted every axis once: {tuple(range(len(shape)))} in some order")
    return (TensorType(tuple(shape[i] for i in order), types[0].dtype),)


def _sliced(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    shape, start, size = types[0].shape, attrs["start"], attrs["size"]
    axis = _axis(attrs["axis"], shape)
    _sizes((size,), "size")
    rest = add_sizes(shape[axis], scaled(add_sizes(start, size), -1))
    if not all(map(_never_negative, (start, size, rest))):
        raise GraphError(f"x is {types[0]}: {size} from {start} on may lie outside of "
                         f"{shape[axis]}")
    return (TensorType(_with(shape, axis, size), types[0].dtype),)


def _split(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    shape, sizes = types[0].shape, _sizes(attrs["sizes"], "sizes")
    axis = _axis(attrs["axis"], shape)
    total: Size = 0
    for size in sizes:
        total = add_sizes(total, size)
    if total != shape[axis]:
        raise GraphError(f"x is {types[0]}: sizes ({', '.join(map(str, sizes))}) add up to "
                         f"{total}, but axis {axis} is {shape[axis]}")
    return tuple(TensorType(_with(shape, axis, s), types[0].dtype) for s in sizes)


def _expanded(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    shape, old = _sizes(attrs["shape"], "shape"), types[0].shape
    new = TensorType(shape, types[0].dtype)
    if len(shape) != len(old) or any(a not in (1, b) for a, b in zip(old, shape, strict=True)):
        raise GraphError(f"x is {types[0]}, which cannot grow to {new}",
                         hint="only sizes of a literal 1 grow; reshape adds axes")
    return (new,)


def _concatenated(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    if not types:
        raise GraphError("no operands given")
    first = types[0]
    axis = _axis(attrs["axis"], first.shape)
    total: Size = 0
    for t in types:
        fits = len(t.shape) == len(first.shape) and t.dtype == first.dtype
        if not fits or _with(t.shape, axis, 1) != _with(first.shape, axis, 1):
            raise GraphError(f"{first} and {t} may differ in axis {axis} alone")
        total = add_sizes(total, t.shape[axis])
    return (TensorType(_with(first.shape, axis, total), first.dtype),)


def _counted(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    if attrs["dtype"] not in ("i32", "f32"):
        raise GraphError(f"dtype is {attrs['dtype']!r}, wanted i32 or f32")
    return (TensorType(_sizes((attrs["size"],), "size"), attrs["dtype"]),)


@kernel(infer=_counted)
def arange(*, size: int, dtype: str = "i32") -> Tensor:
    """0, 1, 2, ... as [size], i32 or f32. A mask by position is arange(size=slots) <=
    positions[..., None]."""
    return torch.arange(size, dtype=torch_dtype(dtype))


@kernel(infer=_reshaped, kind="view")
def reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """x, any dtype, with the same elements in row order as a tensor of this shape."""
    return x.reshape(shape)


@kernel(infer=_transposed, kind="view")
def transpose(x: Tensor, *, order: tuple[int, ...]) -> Tensor:
    """x, any dtype, with its axes in this order: axis i of the result is axis order[i] of x."""
    return x.permute(order)


@kernel(infer=_sliced, kind="view")
def slice(x: Tensor, *, axis: int, start: int, size: int) -> Tensor:
    """`size` elements of x, any dtype, along `axis` from `start` on."""
    return x.narrow(axis, start, size)


@kernel(infer=_split, kind="view")
def split(x: Tensor, *, sizes: tuple[int, ...], axis: int = -1) -> tuple[Tensor, ...]:
    """x, any dtype, cut along `axis` into pieces of these sizes, which add up to the axis."""
    return torch.split_with_sizes(x, list(sizes), axis)


@kernel(infer=_expanded, kind="view")
def expand(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """x, any dtype, repeated along the axes where its size is a literal 1 until it has `shape`."""
    return x.expand(shape)


@kernel(infer=_concatenated)
def concat(*xs: Tensor, axis: int) -> Tensor:
    """The operands, of one dtype, one after the other along `axis`; other sizes are equal."""
    return torch.cat(xs, axis)


@operation
def repeat_interleave(x: Value, *, n: int, axis: int) -> Value:
    """x, any dtype, with every row along `axis` n times in a row: 0 0 1 1 2 2 for n = 2. Heads
    that share a key are read like this: repeat_interleave(k, n=group, axis=2)."""
    at = _axis(axis, x.shape)
    lead, rest = x.shape[:at + 1], x.shape[at + 1:]
    wide = expand(reshape(x, shape=(*lead, 1, *rest)), shape=(*lead, n, *rest))
    y: Value = reshape(wide, shape=_with(x.shape, at, scaled(x.shape[at], n)))
    return y


@kernel("x[b, t, *d], rows[b, r]:i32 -> y[b, r, *d]")
def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """y[i, j] = x[i, rows[i, j]]: some rows of every sequence. Every row number is at least 0 and
    below t."""
    batch = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x[batch, rows.long()]


@kernel("x[n, *d], index[*i]:i32 -> y[*i, *d]")
def gather(x: Tensor, index: Tensor) -> Tensor:
    """y[i...] = x[index[i...]]: rows of a table. Every index is at least 0 and below n."""
    return x[index.long()]


def split_heads(x: Value, heads: int) -> Value:
    """x[*b, heads * d] as [*b, heads, d]: a reshape. Raises GraphError if heads does not divide."""
    width = x.shape[-1]
    if not isinstance(width, int) or heads < 1 or width % heads:
        raise GraphError(f"split_heads: {heads} heads in {x.type}", user_loc(),
                         "the last axis has to be heads times the width of a head")
    result: Value = reshape(x, shape=(*x.shape[:-1], heads, width // heads))
    return result


def merge_heads(x: Value) -> Value:
    """x[*b, heads, d] as [*b, heads * d]: a reshape. Raises GraphError for fewer than two axes."""
    heads, width = x.shape[-2:] if len(x.shape) > 1 else (0, 0)
    if not isinstance(heads, int) or not isinstance(width, int) or not heads:
        raise GraphError(f"merge_heads: x is {x.type}, wanted [..., heads, d]", user_loc())
    result: Value = reshape(x, shape=(*x.shape[:-2], heads * width))
    return result


def index(x: Value, key: Any) -> Value:
    """x[key] as in torch, for whole numbers, slices of step 1, None and `...`.

    Raises GraphError for other keys and for what may lie outside of x.
    """
    shape: list[Size] = []
    axis = 0
    for item in _full_key(x, key):
        if item is None:
            shape.append(1)
            continue
        start, size = _range(x, item, x.shape[axis])
        if size != x.shape[axis]:
            x = slice(x, axis=axis, start=start, size=size)
        if isinstance(item, builtins.slice):
            shape.append(size)
        axis += 1
    if tuple(shape) == x.shape:
        return x
    result: Value = reshape(x, shape=tuple(shape))
    return result


def rows(x: Value) -> list[Value]:
    """x[0], x[1], ...: what a loop over x, or `a, b = x`, takes. Raises GraphError if the first
    size is not a plain number."""
    if not x.shape or not isinstance(x.shape[0], int):
        raise GraphError(f"a loop over {x.type}, whose first size is not a number", user_loc(),
                         "ops work on all rows at once; split(x, sizes=...) cuts along an axis")
    return [index(x, i) for i in range(x.shape[0])]


def _full_key(x: Value, key: Any) -> list[Any]:
    """The key with `...` and what is left out at the end spelt out: one item for every axis."""
    items = list(key) if isinstance(key, tuple) else [key]
    missing = len(x.shape) - sum(i is not None and i is not Ellipsis for i in items)
    dots = [i for i, item in enumerate(items) if isinstance(item, EllipsisType)]
    if missing < 0 or len(dots) > 1:
        raise GraphError(f"x[...]: {len(items)} indices for {x.type}", user_loc())
    at = dots[0] if dots else len(items)
    return items[:at] + [builtins.slice(None)] * missing + items[at + 1:]


def _range(x: Value, item: Any, length: Size) -> tuple[Size, Size]:
    """Where an index starts and how much of an axis it takes."""
    if isinstance(item, builtins.slice) and item.step in (None, 1):
        start = _from_front(0 if item.start is None else item.start, length)
        stop = _from_front(length if item.stop is None else item.stop, length)
        if isinstance(stop, int) and isinstance(length, int):
            stop = min(stop, length)
        return start, add_sizes(stop, scaled(start, -1))
    if isinstance(item, int | Dim | Affine) and not isinstance(item, bool):
        return _from_front(item, length), 1
    raise GraphError(f"x[...]: the index {item!r} of {x.type} is not supported", user_loc(),
                     "whole numbers, slices of step 1, None and ... are; take_rows and gather "
                     "pick rows by tensors")


def _from_front(at: Size, length: Size) -> Size:
    return add_sizes(length, at) if isinstance(at, int) and at < 0 else at
