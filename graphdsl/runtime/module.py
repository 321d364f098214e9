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
        for number, weight in enumerate(operator.weights):
            self.register_buffer(f"weight{number}", weight)

    def forward(self, *arguments: Any) -> Any:
        """The result, or a tuple of them; the state is changed in place."""
        weights = list(self._buffers.values())
        return self._op(*arguments[: self._inputs], weights, *arguments[self._inputs:])


__all__ = ["OperatorModule"]
