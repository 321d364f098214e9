"""`torch.ops.graphdsl.<name>`: an operator that torch.compile, torch.export and inference mode see.

The schema is `(Tensor x, ..., Tensor[] weights, Tensor(a!)[] state) -> Tensor`. State is changed in
place and never returned, for functionalisation refuses outputs that alias inputs; weights are
arguments, so that an exported program keeps them.

A process that loads an exported program has to know the operator before:
`torch_op(graphdsl.load(folder))` with the folder of the same build, then `torch.export.load`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.lazy import torch
from graphdsl.manifest import manifest_text
from graphdsl.runtime.dims import settle
from graphdsl.runtime.operator import Operator

if TYPE_CHECKING:
    from torch import Tensor

_REGISTERED: dict[str, Any] = {}
"""torch keeps one operator a name and process, and drops it with its Library object."""

_LOCK = threading.Lock()


def torch_op(operator: Operator) -> Callable[..., Any]:
    """The registered torch operator, `torch.ops.graphdsl.<name>`, of a built one.

    Its name carries a hash of the build, so that nothing that torch caches for another build of
    the same layer is ever used. Call it with the inputs, then `operator.weights`, then the list of
    state tensors in the manifest's order (left out where the layer has none). It gives one tensor,
    or a tuple where the layer has several results. Errors are those of the operator; an input that
    requires grad is refused in grad mode.
    """
    name = torch_name(operator)
    with _LOCK:
        if name not in _REGISTERED:
            _REGISTERED[name] = _define(operator, name)
    found: Callable[..., Any] = getattr(torch.ops.graphdsl, name).default
    return found


def torch_name(operator: Operator) -> str:
    """`llamalayer_1a2b3c4d`: the layer's name and a hash of everything that was built."""
    text = manifest_text(operator.manifest) + operator.checksum
    plain = re.sub(r"\W", "_", operator.name).lower()
    return f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _define(operator: Operator, name: str) -> Any:
    library: Any = torch.library.Library("graphdsl", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(f"{name}{schema(operator)}",
                   tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    run = _implementation(operator)
    for key in _dispatch_keys(operator.device.type):
        library.impl(name, run, key)
    torch.library.register_fake(f"graphdsl::{name}", _fake(operator), lib=library)
    return library


def _dispatch_keys(device: str) -> tuple[str, ...]:
    """Those under which the operator is found: the host's too, where tensors of a device are missed
    with a message, or a layer takes none."""
    own: str = torch._C._dispatch_key_for_device(device)
    return tuple(dict.fromkeys(("CPU", own)))


def schema(operator: Operator) -> str:
    """The arguments and results of the torch operator."""
    arguments = [f"Tensor {name}" for name in _argument_names(operator)]
    arguments.append("Tensor[] weights")
    if operator.state:
        arguments.append("Tensor(a!)[] state")
    results = ", ".join("Tensor" for _ in operator.outputs)
    results = results if len(operator.outputs) == 1 else f"({results})"
    return f"({', '.join(arguments)}) -> {results}"


def _argument_names(operator: Operator) -> list[str]:
    """The inputs' names, told apart from the two that the schema itself needs, and without the dots
    of caches that are inputs."""
    return [f"{p.name}_" if p.name in ("weights", "state", "self") else p.name.replace(".", "_")
            for p in operator.inputs]


def _split(operator: Operator,
           arguments: Sequence[Any]) -> tuple[Sequence[Tensor], list[Tensor], list[Tensor]]:
    count = len(operator.inputs)
    state = arguments[count + 1] if operator.state else []
    return arguments[:count], arguments[count], state


def _implementation(operator: Operator) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        results = operator.run(*_split(operator, arguments))
        return results[0] if len(results) == 1 else tuple(results)
    return run


def _fake(operator: Operator) -> Callable[..., Any]:
    """Shapes alone, symbolic ones too, on the device of what the host does not read. What has no
    backward is refused while it is traced."""
    ports = operator.inputs + operator.state
    placed = next((i for i, p in enumerate(operator.inputs) if p.device == operator.device.type),
                  None)

    def run(*arguments: Any) -> Any:
        inputs, weights, state = _split(operator, arguments)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *weights, *state)):
            raise GraphError(f"{operator.name}: an input requires grad, and a built operator has "
                             "no backward",
                             hint="call it under torch.no_grad() or torch.inference_mode()")
        dims: dict[str, Any] = {}
        for tensor, port in zip((*inputs, *state), ports, strict=True):
            port.bind(f"{operator.name}: {port.name}", tensor.shape, dims)
        settle(operator.dims, dims)
        like = weights[0] if placed is None and weights else inputs[placed or 0]
        results = [like.new_empty(output.sizes(dims), dtype=output.dtype)
                   for output in operator.outputs]
        return results[0] if len(results) == 1 else tuple(results)
    return run


__all__ = ["schema", "torch_name", "torch_op"]
