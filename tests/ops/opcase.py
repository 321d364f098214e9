"""Running one op on tensors, as the reference does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphdsl.ir import Graph, TensorType, Value
from graphdsl.op import Op
from graphdsl.reference import run

IR_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16",
            torch.int32: "i32", torch.bool: "bool"}


def value_of(tensor: Tensor, name: str = "x") -> Value:
    """A graph input of the shape and dtype of `tensor`."""
    return Value(TensorType(tuple(tensor.shape), IR_NAMES[tensor.dtype]), name=name)


def apply(op: Op | Callable[..., Any], *tensors: Tensor | float, exact: bool = False,
          **attrs: Any) -> Any:
    """What `op` gives for these tensors: traced to a graph, whose types are checked against what
    its run gives. One tensor, or a tuple where the op has several outputs."""
    leaves = [value_of(t, f"x{i}") if isinstance(t, Tensor) else t for i, t in enumerate(tensors)]
    named = {k: value_of(t, k) for k, t in attrs.items() if isinstance(t, Tensor)}
    made = op(*leaves, **(attrs | named))
    outputs = made if isinstance(made, tuple) else (made,)
    inputs = tuple(v for v in leaves if isinstance(v, Value)) + tuple(named.values())
    given = [t for t in tensors if isinstance(t, Tensor)] + [attrs[k] for k in named]
    results = run(Graph("test", inputs, (), (), outputs), given, {}, exact=exact)
    if not exact:
        for output, result in zip(outputs, results, strict=True):
            assert output.shape == tuple(result.shape)
            assert output.dtype == IR_NAMES[result.dtype]
    return tuple(results) if isinstance(made, tuple) else results[0]


def draw(generator: torch.Generator, lowest: int, highest: int) -> int:
    """A whole number from lowest to highest."""
    return int(torch.randint(lowest, highest + 1, (1,), generator=generator))


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=generator).to(dtype)
