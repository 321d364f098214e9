"""Matrix products. Weights are [out, in], as torch's Linear has them.

Products are added up in f32 (f64 for f64) and rounded once to the dtype of the operands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.lazy import torch
from graphdsl.op import kernel, operation, user_loc
from graphdsl.ops.shape import transpose

if TYPE_CHECKING:
    from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in the dtype that sums are made in: f32, or f64 where x is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@kernel("x[*b, k], w[n, k] -> y[*b, n]")
def matmul_nt(x: Tensor, w: Tensor) -> Tensor:
    """y = x @ w.T; floats."""
    return (wide(x) @ wide(w).T).to(x.dtype)


@kernel("a[*b, m, k], b[*b, k, n] -> y[*b, m, n]")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """y = a @ b for every index of the leading axes, which are not broadcast; floats."""
    return (wide(a) @ wide(b)).to(a.dtype)


@kernel("ids[*b]:i32, table[n, d] -> y[*b, d]")
def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """y[i...] = table[ids[i...]]. Every id is at least 0 and below n."""
    return table[ids.long()]


@kernel("x[*b, k], w[e, n, k], ids[*b]:i32 -> y[*b, n]")
def expert_linear(x: Tensor, w: Tensor, ids: Tensor) -> Tensor:
    """Every row of x by the weight of its own expert: y[i...] = w[ids[i...]] @ x[i...]. Every id
    is at least 0 and below e. A mixture of experts without sizes that depend on data."""
    rows, flat = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
    y = rows.new_zeros(rows.shape[0], w.shape[1])
    for expert in sorted(set(flat.tolist())):
        taken = flat == expert
        y[taken] = (wide(rows[taken]) @ wide(w[expert]).T).to(x.dtype)
    return y.reshape(*x.shape[:-1], w.shape[1])


@operation("x[*b, k], w[n, k], bias?[n] -> y[*b, n]")
def linear(x: Value, w: Value, bias: Value | None = None) -> Value:
    """y = x @ w.T + bias; the product is rounded before the bias is added."""
    y: Value = matmul_nt(x, w)
    return y if bias is None else y + bias


def product(a: Value, b: Value) -> Value:
    """a @ b: a matrix for every index of the leading axes of both, or x[*b, k] @ w[k, n], as a
    weight that is [in, out] is used. Raises GraphError for other shapes; nothing is broadcast."""
    if not isinstance(b, Value) or len(b.shape) != 2 or len(a.shape) in (0, 2):
        matrices: Value = matmul(a, b)
        return matrices
    if a.shape[-1] != b.shape[0]:
        raise GraphError(f"x @ w: x is {a.type} and w is {b.type}: {a.shape[-1]} and {b.shape[0]} "
                         "differ", user_loc(), "x[*b, k] @ w[k, n]; linear takes a weight [n, k]")
    rows: Value = matmul_nt(a, transpose(b, order=(1, 0)))
    return rows
