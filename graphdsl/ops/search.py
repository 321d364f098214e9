"""Kernels that look for the largest values of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import TensorType, upper_bound
from graphdsl.op import kernel

if TYPE_CHECKING:
    from torch import Tensor


def _topk(types: Sequence[TensorType], attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    k, shape = attrs["k"], types[0].shape
    if not isinstance(k, int) or not 1 <= k <= upper_bound(shape[-1]):
        raise GraphError(f"k is {k}, wanted 1 to {shape[-1]}")
    new = (*shape[:-1], k)
    return TensorType(new, types[0].dtype), TensorType(new, "i32")


@kernel("x[*b, n]", infer=_topk)
def topk(x: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and their places: x[*b, n] -> values[*b, k], indices[*b, k]:i32,
    the largest first and of equal ones the one that comes first."""
    values, indices = x.sort(dim=-1, descending=True, stable=True)
    return values[..., :k].contiguous(), indices[..., :k].int()


@kernel("x[*b, n] -> y[*b]:i32")
def argmax(x: Tensor) -> Tensor:
    """The place of the largest of every row; of equal ones the first."""
    return x.argmax(-1).int()
