"""An operator as a torch module, whose weights go where the module goes."""

from __future__ import annotations

from typing import Any

import torch

from graphdsl.runtime.door import torch_op
from graphdsl.runtime.operator import Operator


class OperatorModule(torch.nn.Module):
    """`torch.ops.graphdsl.<name>` with the packed weights as buffers: what to compile or export.

    Call it with the inputs, then the list of state tensors (left out where the layer has none).
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self._op = torch_op(operator)
        self._inputs = len(operator.inputs)
        weights = operator.weights
        self._names = [f"weight{i}" for i in range(len(weights))]
        for name, weight in zip(self._names, weights, strict=True):
            self.register_buffer(name, weight)

    def forward(self, *arguments: Any) -> Any:
        """The result, or a tuple of them; the state is changed in place."""
        weights = [getattr(self, name) for name in self._names]
        return self._op(*arguments[: self._inputs], weights, *arguments[self._inputs:])


__all__ = ["OperatorModule"]
