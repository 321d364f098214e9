"""`torch.classes.graphdsl.Operation`: operators behind the calling convention of ATB's
OperationTorch, for eager code.

    register(operator, cache=folder, environment=os.environ)
    layer = torch.classes.graphdsl.Operation("LlamaLayer")
    results = layer.execute([x, positions, k_cache, v_cache])

`execute` takes the inputs and then the state tensors, both in the manifest's order, with the
weights that were bound when the operator was registered; it changes the state in place and gives
the list of results. An AtbLayer that is registered takes and gives what its own `execute` does, and
every Operation has a twin of it: weights and a cache of its own, which go with the Operation. The
layer that was registered lives until its name is registered again, and no Operation of it is left.

What does not fit is refused with the operator's messages, as RuntimeError. An Operation runs one
call at a time, and other Python threads go on meanwhile (a layer takes Python's lock between its
native steps, and so does an operator whose tensors are on a device): threads that are to run at
once have an Operation each. The C++ behind it is compiled at its first use and kept in the cache,
for torch's class registry has no stable ABI.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphdsl.compiler import Tools
from graphdsl.errors import GraphError
from graphdsl.lazy import torch
from graphdsl.runtime.operator import Operator
from graphdsl.runtime.ports import Extent, Port
from graphdsl.runtime.torch_device import DeviceLayer
from graphdsl.runtime.torch_layers import TorchLayer, define_calls, handle_of

HERE = Path(__file__).parent
SOURCES = tuple(HERE / name for name in ("torch_class.cpp", "torch_runner.hpp", "torch_entry.hpp",
                                         "torch_facts.hpp", "abi.h"))
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")
LIBRARIES = ("-ltorch", "-ltorch_cpu", "-lc10")

_LOCK = threading.Lock()


def register(operator: Operator | TorchLayer, name: str | None = None, *, cache: Path,
             environment: Mapping[str, str]) -> str:
    """Makes `torch.classes.graphdsl.Operation(name)` run this operator with its bound weights, or
    this layer with the weights that it is given.

    The name is the operator's own unless given; a later registration of the same name serves the
    Operations made after it. A layer has ATB's spelling too, unless other software has that class:
    `torch.classes.OperationTorch.OperationTorch(name)`. `cache` is a folder, made at need;
    `environment` holds CXX and PATH. Gives the name. Raises GraphError when no weights are bound,
    ToolError when the compiler fails.
    """
    chosen = name or operator.name
    if not isinstance(operator, Operator) or operator.device.away:
        layer = DeviceLayer(operator) if isinstance(operator, Operator) else operator
        load_class(cache, environment)
        define_calls()
        torch.ops.graphdsl.register_layer(chosen, handle_of(layer))
        if layer is operator:
            _alias(chosen)
        return chosen
    if operator.group is not None:
        raise GraphError(f"{chosen} is rank {operator.group.rank} of {operator.group.ranks}: "
                         "an Operation of torch.classes runs in one process",
                         hint="call the operator itself")
    weights = operator.weights
    load_class(cache, environment)
    numbers, texts = _facts(operator)
    torch.ops.graphdsl.register_operation(chosen, operator.library, numbers, texts, weights)
    return chosen


def _alias(name: str) -> None:
    """ATB's own spelling, where it is free; two classes of one name cannot be loaded."""
    if not torch.ops.graphdsl.alias_operation():
        warnings.warn("torch.classes.OperationTorch.OperationTorch is that of other software: "
                      f"torch.classes.graphdsl.Operation({name!r}) is ours", stacklevel=4)


def load_class(cache: Path, environment: Mapping[str, str]) -> None:
    """Loads the class into torch, compiled if the cache has none for this torch and compiler."""
    with _LOCK:
        if not hasattr(torch.ops.graphdsl, "register_operation"):
            operations: Any = torch.ops
            operations.load_library(class_library(cache, environment))


def class_library(cache: Path, environment: Mapping[str, str]) -> Path:
    """The compiled class in the cache. Raises ToolError when the compiler fails.

    Its name holds a hash of what it depends on and one of its content, so that a damaged one is
    not taken; it gets that name when it is whole, whoever else compiles it at the same time.
    """
    tools = Tools(environment, hint="install g++ 12 or newer, or set CXX to a C++20 compiler")
    key = _key(tools)
    folder = cache / "torch_class"
    for found in sorted(folder.glob(f"{key}-*.so")):
        if found.name == f"{key}-{_digest(found.read_bytes())}.so":
            return found
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as staged:
        library = Path(staged) / "torch_class.so"
        tools.run([*tools.compiler, *_flags(), str(SOURCES[0]), "-o", str(library), *_libraries()])
        target = folder / f"{key}-{_digest(library.read_bytes())}.so"
        os.replace(library, target)
    return target


def _key(tools: Tools) -> str:
    parts = [torch.__version__, tools.version(), *_flags(),
             *(path.read_text() for path in SOURCES)]
    return _digest("\0".join(parts).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    abi = int(torch.compiled_with_cxx11_abi())
    return [*FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-isystem", str(include), "-isystem",
            str(include / "torch" / "csrc" / "api" / "include"), f"-I{HERE}"]


def _libraries() -> list[str]:
    return [f"-L{Path(torch.__file__).parent / 'lib'}", *LIBRARIES]


def _facts(operator: Operator) -> tuple[list[int], list[str]]:
    """The manifest as numbers and texts, in the order in which the C++ reads them."""
    place = {dim.name: i for i, dim in enumerate(operator.dims)}
    numbers, texts = [len(place)], [operator.name]
    for dim in operator.dims:
        equals = _extent_numbers(dim.equals, place) if dim.equals else []
        numbers += [dim.lo, dim.hi, dim.step, len(equals[:1]), *equals]
        texts += [dim.name, str(dim.equals or "")]
    for ports in (operator.inputs, operator.state, operator.outputs):
        numbers.append(len(ports))
        for port in ports:
            numbers += _port_numbers(port, place)
            texts += [port.name, str(port), port.type]
    numbers.append(len(operator.pages))
    for check in operator.pages:
        numbers += [-1 if check.positions is None else check.positions, check.table, check.block]
    return numbers, texts


def _port_numbers(port: Port, place: Mapping[str, int]) -> list[int]:
    numbers = [len(port.shape)]
    for extent in port.shape:
        numbers += _extent_numbers(extent, place)
    numbers.append(len(port.ranges))
    for low, high in port.ranges:
        numbers += _extent_numbers(low, place) + _extent_numbers(high, place)
    return numbers


def _extent_numbers(extent: Extent, place: Mapping[str, int]) -> list[int]:
    terms = [n for name, factor in extent.terms for n in (place[name], factor)]
    return [len(extent.terms), *terms, extent.const]


__all__ = ["class_library", "load_class", "register"]
