"""Where the tensors of an operator lie: in the host's memory, or on a device of torch.

A manifest names the device by torch's name, "npu"; without one it is the host. What the host reads
itself (ids, positions, rows, the block table) says so in its port, and lies on the host always.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime.ports import Port

HOST = "cpu"
HINTS = {"npu": "pip install torch-npu, in the version of torch, and source the set_env.sh of "
                "CANN; without an NPU, build with ASCEND_HOME_PATH and ATB_HOME_PATH unset"}
"""How to get the package of a device."""


@dataclass(frozen=True)
class Device:
    """A kind of device by torch's name; for one that is not the host, torch's module for it
    (`torch_npu.npu`) and the attribute of its streams that is the address of the native one."""

    type: str = HOST
    module: Any = None
    address: str = ""

    @property
    def away(self) -> bool:
        """Whether activations, weights and caches are not on the host."""
        return self.module is not None

    def current(self) -> torch.device:
        """Where new tensors are made."""
        if not self.away:
            return torch.device(HOST)
        return torch.device(self.type, self.module.current_device())

    def place(self, port: Port, tensor: Tensor) -> Tensor:
        """The tensor where a call wants it."""
        return tensor.to(HOST if port.device == HOST else self.current())

    def stream(self, owner: str) -> int:
        """The address of the current stream. Whatever torch has queued is on it by then. Raises
        GraphError where there is none: the library would take a stream of its own, which does not
        wait for torch's."""
        found = int(getattr(self.module.current_stream(), self.address))
        if not found:
            raise GraphError(f"{owner}: torch has no current stream on {self.current()}",
                             hint="an operation before may have failed there: see its log")
        return found

    def gathered(self, owner: str, ports: Sequence[Port], tensors: Sequence[Tensor],
                 weights: torch.device | None) -> list[Tensor]:
        """The tensors of a call, copies of those that the host reads and that lie elsewhere: a copy
        waits for the device. Raises GraphError for others that are not where the weights are, or
        without weights on the current device."""
        now = self.current()
        at, what = (weights, "its weights are on") if weights else (now, "the current device is")
        # Too few, too many and what is no tensor is refused by the check of all operators.
        found = list(tensors)
        for i, (tensor, port) in enumerate(zip(tensors, ports, strict=False)):
            if not isinstance(tensor, torch.Tensor):
                continue
            if port.device != HOST and tensor.device != at:
                raise GraphError(f"{owner}: {port.name} is on {tensor.device}, but {what} {at}",
                                 hint=f'{port.name}.to("{at}")')
            if port.device == HOST and tensor.device.type not in (HOST, self.type):
                raise GraphError(f"{owner}: {port.name} is on {tensor.device}, wanted the CPU or "
                                 f"{self.type}", hint=f"{port.name}.cpu()")
            if port.device == HOST:
                found[i] = tensor.cpu()
        if at != now:
            raise GraphError(f"{owner}: its weights are on {at}, but the current device is {now}",
                             hint=f"torch.{self.type}.set_device({at.index})")
        return found


def open_device(owner: str, kind: str) -> Device:
    """The device of this name. Raises GraphError where the package that brings it to torch is
    missing or does not load."""
    if kind == HOST:
        return Device()
    module = getattr(torch, kind, None) or getattr(_package(owner, kind), kind)
    return Device(kind, module, f"{kind}_stream")


def _package(owner: str, kind: str) -> Any:
    name = f"torch_{kind}"
    try:
        return import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "is not installed" if missing else f"does not load: {error}"
        raise GraphError(f"{owner}: its tensors are on {kind}, which needs {name}, and that {why}",
                         hint=HINTS.get(kind, f"install {name}")) from None


class _Claims(threading.local):
    """The device on which this thread runs a library."""

    def __init__(self) -> None:
        self.devices: dict[str, torch.device] = {}


_CLAIMS = _Claims()


def claim(owner: str, library: str, at: torch.device) -> None:
    """Plans of a thread share the memory that a library allocates, which lies on one device.
    Raises GraphError where this thread has run the library on another one."""
    first = _CLAIMS.devices.setdefault(library, at)
    if first != at:
        raise GraphError(f"{owner}: its weights are on {at}, but this thread has run the library "
                         f"on {first}",
                         hint="use another thread or process for every device")


__all__ = ["HOST", "Device", "claim", "open_device"]
