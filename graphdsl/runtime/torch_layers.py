"""Layers of Python behind `torch.classes.graphdsl.Operation`: the torch operators by which its C++
makes and calls them, so that torch sees to Python's lock and to the life of its objects.

C++ holds a layer as an attribute of an empty tensor: torch keeps those for as long as anything has
the tensor, and lets go of them with it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from graphdsl.errors import GraphError, ToolError
from graphdsl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class TorchLayer(Protocol):
    """What is called by way of the class. Each of its Operations has a twin, which keeps what is
    not shared: weights, caches, and a name for errors."""

    name: str

    def twin(self) -> TorchLayer:
        """Another one of the same builds."""
        ...

    def execute(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """The results."""
        ...

    def execute_out(self, tensors: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> None:
        """The results, into tensors that are given."""
        ...

    def set_name(self, name: str) -> None:
        """How errors begin from now on."""
        ...

    def set_param(self, text: str) -> None:
        """Compares JSON with what was built."""
        ...


_LOCK = threading.Lock()
_LIBRARIES: list[Any] = []
"""torch drops operators with their Library object."""


def define_calls() -> None:
    """Makes `torch.ops.graphdsl.twin_of_layer` and `call_layer`, once a process."""
    with _LOCK:
        if _LIBRARIES:
            return
        library: Any = torch.library.Library("graphdsl", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("twin_of_layer(Tensor layer) -> Tensor")
        library.define("call_layer(Tensor layer, str method, Tensor?[] tensors, Tensor[] outputs, "
                       "str text) -> (Tensor[], str)")
        library.impl("twin_of_layer", _twin, "CompositeImplicitAutograd")
        library.impl("call_layer", _call, "CompositeImplicitAutograd")
        _LIBRARIES.append(library)


def handle_of(layer: TorchLayer) -> Tensor:
    """A tensor that stands for a layer."""
    handle = torch.empty(0)
    vars(handle)["layer"] = layer
    return handle


def _layer_of(handle: Tensor) -> TorchLayer:
    found: TorchLayer = vars(handle)["layer"]
    return found


def _twin(handle: Tensor) -> Tensor:
    return handle_of(_layer_of(handle).twin())


def _call(handle: Tensor, method: str, tensors: Sequence[Tensor | None],
          outputs: Sequence[Tensor], text: str) -> tuple[list[Tensor], str]:
    """The results, and what is refused: the C++ makes an error of torch from that."""
    layer = _layer_of(handle)
    try:
        if method == "execute":
            return layer.execute(tensors), ""
        if method == "execute_out":
            layer.execute_out(tensors, outputs)
        elif method == "set_name":
            layer.set_name(text)
        else:
            layer.set_param(text)
    except (GraphError, ToolError) as error:
        return [], str(error)
    return [], ""


__all__ = ["TorchLayer", "define_calls", "handle_of"]
