"""Operators whose tensors are on a device, behind `torch.classes.graphdsl.Operation`: called in
Python, which knows the stream of torch there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from graphdsl.errors import GraphError
from graphdsl.runtime.dims import settle
from graphdsl.runtime.operator import Operator

if TYPE_CHECKING:
    from torch import Tensor


class DeviceLayer:
    """An operator with its weights, as the class calls layers; `name` is how errors begin. Raises
    GraphError without weights."""

    def __init__(self, operator: Operator) -> None:
        self._weights = operator.weights
        self._operator = operator.with_packed(self._weights)
        self.name = operator.name

    def twin(self) -> DeviceLayer:
        """Another one with the same weights."""
        return DeviceLayer(self._operator)

    def execute(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """The results for the inputs and then the state, which is changed in place."""
        return self._operator.run(*self._split(tensors))

    def execute_out(self, tensors: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> None:
        """As `execute`, with the results copied into tensors that are given. Raises GraphError,
        before anything is changed, for other outputs."""
        operator, dims = self._operator, dict[str, int]()
        inputs, _, state = self._split(tensors)
        for tensor, port in zip((*inputs, *state), operator.inputs + operator.state, strict=True):
            port.bind(f"{self.name}: {port.name}", tensor.shape, dims)
        settle(operator.dims, dims)
        if len(outputs) != len(operator.outputs):
            raise GraphError(f"{self.name}: {len(outputs)} outputs given, wanted "
                             f"{len(operator.outputs)}")
        for target, port in zip(outputs, operator.outputs, strict=True):
            replace(port, name=f"the output {port.name}").check(self.name, target, dims)
        for target, result in zip(outputs, self.execute(tensors), strict=True):
            target.copy_(result)

    def _split(self, tensors: Sequence[Tensor | None]) -> tuple[
            list[Tensor], list[Tensor], list[Tensor]]:
        """Inputs, weights and state."""
        inputs, state = len(self._operator.inputs), len(self._operator.state)
        given = [tensor for tensor in tensors if tensor is not None]
        if len(tensors) != inputs + state or len(given) != len(tensors):
            lost = len(tensors) - len(given)
            missing = f", {lost} of them None" if lost else ""
            raise GraphError(f"{self.name}: {len(tensors)} tensors given{missing}, wanted {inputs} "
                             f"inputs and {state} state tensors")
        return given[:inputs], self._weights, given[inputs:]

    def set_name(self, name: str) -> None:
        """How errors begin from now on."""
        self.name = self._operator.name = name

    def set_param(self, text: str) -> None:
        """Raises GraphError: there is nothing to set."""
        del text
        raise GraphError(f"{self.name}: set_param: an operator has its numbers from its build",
                         hint="leave it out; a layer with ATB's order of calls compares them, "
                              "graphdsl.borders.atb.AtbLayer")


__all__ = ["DeviceLayer"]
