"""Elementwise kernels, reductions along the last axis, and casts.

Operands of a pointwise kernel are broadcast as in torch, by their types: a literal 1 fits any
size, a symbolic size fits only itself. All operands have one dtype; numbers take the dtype of the
values beside them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import BUILT, DTYPES, FLOATS, Size, TensorType, Value
from graphdsl.lazy import torch, torch_dtype
from graphdsl.op import kernel, operation

if TYPE_CHECKING:
    from torch import Tensor

Types = Sequence[TensorType]
Attributes = dict[str, Any]
NUMBERS = (*FLOATS, "i32")


def broadcast_shape(types: Types) -> tuple[Size, ...]:
    """The common shape. Raises GraphError where two sizes differ and neither is a literal 1."""
    rank = max(len(t.shape) for t in types)
    padded = [(1,) * (rank - len(t.shape)) + t.shape for t in types]
    shape: list[Size] = []
    for sizes in zip(*padded, strict=True):
        different = dict.fromkeys(s for s in sizes if s != 1)
        if len(different) > 1:
            raise GraphError(f"{_listed(types)} do not fit together: "
                             f"{' and '.join(map(str, different))} differ",
                             hint="only a literal 1 is broadcast, a symbolic size never is")
        shape.append(next(iter(different), 1))
    return tuple(shape)


def _listed(types: Types) -> str:
    return " and ".join(map(str, types))


def common_dtype(types: Types, allowed: tuple[str, ...]) -> str:
    """The dtype of all operands. Raises GraphError if they differ or it is not an allowed one."""
    if len({t.dtype for t in types}) > 1:
        raise GraphError(f"{_listed(types)} have different dtypes",
                         hint=f'insert cast(..., dtype="{types[0].dtype}")')
    if types[0].dtype not in allowed:
        raise GraphError(f"an operand is {types[0]}, wanted "
                         f"{', '.join(name for name in allowed if name != 'f64')}",
                         hint=f'insert cast(..., dtype="{allowed[0]}")')
    return types[0].dtype


def _numbers(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    return (TensorType(broadcast_shape(types), common_dtype(types, NUMBERS)),)


def _floats(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    return (TensorType(broadcast_shape(types), common_dtype(types, FLOATS)),)


def _comparison(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    common_dtype(types, NUMBERS)
    return (TensorType(broadcast_shape(types), "bool"),)


def _logical(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    return (TensorType(broadcast_shape(types), common_dtype(types, ("bool",))),)


def _choice(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    if types[0].dtype != "bool":
        raise GraphError(f"the condition is {types[0]}, wanted bool",
                         hint="compare first: where(x > 0, a, b)")
    return (TensorType(broadcast_shape(types), common_dtype(types[1:], tuple(DTYPES))),)


def _cast(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    if attrs["dtype"] not in BUILT:
        raise GraphError(f"no dtype {attrs['dtype']!r}", hint=f"dtypes: {', '.join(BUILT)}")
    return (TensorType(types[0].shape, attrs["dtype"]),)


def _row(types: Types, attrs: Attributes) -> tuple[TensorType, ...]:
    if not types[0].shape:
        raise GraphError(f"x is {types[0]} and has no axis to reduce")
    return (TensorType((*types[0].shape[:-1], 1), common_dtype(types, NUMBERS)),)


@kernel(infer=_numbers, kind="pointwise", commutative=True)
def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, broadcast; floats or i32."""
    return x + y


@kernel(infer=_numbers, kind="pointwise")
def sub(x: Tensor, y: Tensor) -> Tensor:
    """x - y, broadcast; floats or i32."""
    return x - y


@kernel(infer=_numbers, kind="pointwise", commutative=True)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """x * y, broadcast; floats or i32."""
    return x * y


@kernel(infer=_floats, kind="pointwise")
def div(x: Tensor, y: Tensor) -> Tensor:
    """x / y, broadcast; floats."""
    return x / y


@kernel(infer=_numbers, kind="pointwise")
def neg(x: Tensor) -> Tensor:
    """-x; floats or i32."""
    return -x


@kernel(infer=_numbers, kind="pointwise")
def abs(x: Tensor) -> Tensor:
    """|x|; floats or i32."""
    return x.abs()


@kernel(infer=_floats, kind="pointwise")
def exp(x: Tensor) -> Tensor:
    """e to the power of x; floats."""
    return x.exp()


@kernel(infer=_floats, kind="pointwise")
def log(x: Tensor) -> Tensor:
    """The natural logarithm; floats. -inf at 0, nan below."""
    return x.log()


@kernel(infer=_floats, kind="pointwise")
def sqrt(x: Tensor) -> Tensor:
    """The square root; floats. nan below 0."""
    return x.sqrt()


@kernel(infer=_floats, kind="pointwise")
def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x); floats. inf at 0, nan below."""
    return x.rsqrt()


@kernel(infer=_floats, kind="pointwise")
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent; floats."""
    return x.tanh()


@kernel(infer=_floats, kind="pointwise")
def erf(x: Tensor) -> Tensor:
    """The error function; floats."""
    return x.erf()


@kernel(infer=_floats, kind="pointwise")
def sin(x: Tensor) -> Tensor:
    """The sine of x in radians; floats."""
    return x.sin()


@kernel(infer=_floats, kind="pointwise")
def cos(x: Tensor) -> Tensor:
    """The cosine of x in radians; floats."""
    return x.cos()


@kernel(infer=_floats, kind="pointwise")
def floor(x: Tensor) -> Tensor:
    """The largest whole number not above x; floats."""
    return x.floor()


@kernel(infer=_floats, kind="pointwise")
def pow(x: Tensor, y: Tensor) -> Tensor:
    """x to the power of y, broadcast; floats. nan for a negative x and a y that is not whole."""
    return x.pow(y)


@kernel(infer=_numbers, kind="pointwise", commutative=True)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The larger of x and y, broadcast; floats or i32. nan where either is."""
    return torch.maximum(x, y)


@kernel(infer=_numbers, kind="pointwise", commutative=True)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of x and y, broadcast; floats or i32. nan where either is."""
    return torch.minimum(x, y)


@kernel(infer=_comparison, kind="pointwise")
def less(x: Tensor, y: Tensor) -> Tensor:
    """x < y as bool, broadcast; floats or i32."""
    return x < y


@kernel(infer=_comparison, kind="pointwise")
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """x <= y as bool, broadcast; floats or i32."""
    return x <= y


@kernel(infer=_comparison, kind="pointwise")
def greater(x: Tensor, y: Tensor) -> Tensor:
    """x > y as bool, broadcast; floats or i32."""
    return x > y


@kernel(infer=_comparison, kind="pointwise")
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """x >= y as bool, broadcast; floats or i32."""
    return x >= y


@kernel(infer=_comparison, kind="pointwise", commutative=True)
def equal(x: Tensor, y: Tensor) -> Tensor:
    """x == y as bool, broadcast; floats or i32."""
    return x == y


@kernel(infer=_logical, kind="pointwise", commutative=True)
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """Both, broadcast; bool."""
    return x & y


@kernel(infer=_logical, kind="pointwise", commutative=True)
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """Either, broadcast; bool."""
    return x | y


@kernel(infer=_logical, kind="pointwise")
def logical_not(x: Tensor) -> Tensor:
    """The opposite; bool."""
    return ~x


@kernel(infer=_choice, kind="pointwise")
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the bool condition holds, else y, all three broadcast; x and y share any dtype."""
    return torch.where(condition, x, y)


@kernel(infer=_cast, kind="pointwise")
def cast(x: Tensor, *, dtype: str) -> Tensor:
    """x rounded to `dtype` (nearest even between floats, towards 0 from float to i32)."""
    return x.to(torch_dtype(dtype))


@kernel(infer=_row, kind="reduce")
def reduce_sum(x: Tensor) -> Tensor:
    """The sum of every row: x[*b, n] -> [*b, 1], added up in f32 for 16-bit floats."""
    return x.sum(-1, keepdim=True, dtype=x.dtype)


@kernel(infer=_row, kind="reduce")
def reduce_max(x: Tensor) -> Tensor:
    """The largest of every row: x[*b, n] -> [*b, 1]."""
    return x.amax(-1, keepdim=True)


@kernel(infer=_row, kind="reduce")
def reduce_min(x: Tensor) -> Tensor:
    """The smallest of every row: x[*b, n] -> [*b, 1]."""
    return x.amin(-1, keepdim=True)


def as_dtype(x: Value, dtype: str) -> Value:
    """x itself where it has this dtype, else a cast: keeps the bodies of operations free of casts
    that do nothing."""
    if x.dtype == dtype:
        return x
    result: Value = cast(x, dtype=dtype)
    return result


def rounded(number: float, dtype: str) -> float:
    """The number of this floating dtype that is nearest, of two the even one. A number beside a
    value is not rounded to its dtype, as in torch; where a model rounds it, this does."""
    if dtype == "bf16":
        (bits,) = struct.unpack("<I", struct.pack("<f", number))
        bits += 0x7fff + (bits >> 16 & 1)
        return float(struct.unpack("<f", struct.pack("<I", bits & 0xffff0000))[0])
    code = {"f16": "<e", "f32": "<f", "f64": "<d"}[dtype]
    return float(struct.unpack(code, struct.pack(code, number))[0])


@operation("x[*b, n] -> y[*b, 1]")
def mean(x: Value) -> Value:
    """The mean of every row: x[*b, n] -> [*b, 1], computed in f32 and rounded to x's dtype."""
    total = reduce_sum(as_dtype(x, "f32"))
    return as_dtype(total / x.shape[-1], x.dtype)
