"""`torch.ops.graphdsl.<name>`: an operator that torch.compile, torch.export and inference mode see.

The schema is `(Tensor x, ..., Tensor[] weights, Tensor(a!)[] state) -> Tensor`. State is changed in
place and never returned, for functionalisation refuses outputs that alias inputs; weights are
arguments, so that an exported program keeps them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import manifest_text
from graphdsl.runtime.operator import Operator, physical_sizes

if TYPE_CHECKING:
    from torch import Tensor

_REGISTERED: dict[str, Any] = {}
"""torch keeps one operator a name and process, and drops it with its Library object."""


def torch_op(operator: Operator) -> Callable[..., Any]:
    """The registered torch operator, `torch.ops.graphdsl.<name>`, of a built one.

    Its name carries a hash of the build, so that nothing that torch caches for another build of
    the same layer is ever used. Call it with the inputs, then `operator.weights`, then the list of
    state tensors (left out where the layer has none).
    """
    name = torch_name(operator)
    if name not in _REGISTERED:
        _REGISTERED[name] = _define(operator, name)
    found: Callable[..., Any] = getattr(torch.ops.graphdsl, name)
    return found


def torch_name(operator: Operator) -> str:
    """`llamalayer_1a2b3c4d`."""
    text = manifest_text(operator.manifest) + (operator.path / "library.sha256").read_text()
    plain = re.sub(r"\W", "_", operator.name).lower()
    return f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _define(operator: Operator, name: str) -> Any:
    library = torch.library.Library("graphdsl", "FRAGMENT")
    library.define(f"{name}{schema(operator)}")
    library.impl(name, _implementation(operator), "CPU")
    library.impl(name, _refuse_grad(operator, name), "AutogradCPU")
    torch.library.register_fake(f"graphdsl::{name}", _fake(operator), lib=library)
    return library


def schema(operator: Operator) -> str:
    """The arguments and results of the torch operator."""
    manifest = operator.manifest
    arguments = [f"Tensor {port['name']}" for port in manifest["inputs"]]
    arguments.append("Tensor[] weights")
    if manifest["state"]:
        arguments.append("Tensor(a!)[] state")
    results = ", ".join("Tensor" for _ in manifest["outputs"])
    results = results if len(manifest["outputs"]) == 1 else f"({results})"
    return f"({', '.join(arguments)}) -> {results}"


def _split(operator: Operator,
           arguments: Sequence[Any]) -> tuple[Sequence[Tensor], list[Tensor], list[Tensor]]:
    count = len(operator.manifest["inputs"])
    state = arguments[count + 1] if operator.manifest["state"] else []
    return arguments[:count], arguments[count], state


def _implementation(operator: Operator) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        results = operator.run(*_split(operator, arguments))
        return results[0] if len(results) == 1 else tuple(results)
    return run


def _refuse_grad(operator: Operator, name: str) -> Callable[..., Any]:
    """There is no backward: an input that wants one is refused, everything else goes on."""
    def run(*arguments: Any) -> Any:
        inputs, weights, state = _split(operator, arguments)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *weights, *state)):
            raise GraphError(f"{operator.name}: an input requires grad, and a built operator has "
                             "no backward",
                             hint="call it under torch.no_grad() or torch.inference_mode()")
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.graphdsl, name)(*arguments)
    return run


def _fake(operator: Operator) -> Callable[..., Any]:
    """Shapes alone, symbolic ones too."""
    ports = operator.manifest["inputs"] + operator.manifest["state"]

    def run(*arguments: Any) -> Any:
        inputs, _, state = _split(operator, arguments)
        dims: dict[str, Any] = {}
        for tensor, port in zip((*inputs, *state), ports, strict=True):
            for size, found in zip(physical_sizes(port), tensor.shape, strict=True):
                if not isinstance(size, int) and list(size["dims"].values()) == [1]:
                    dims.setdefault(next(iter(size["dims"])), found - size["const"])
        results = [_empty(inputs[0], output, dims) for output in operator.manifest["outputs"]]
        return results[0] if len(results) == 1 else tuple(results)
    return run


def _empty(like: Tensor, output: dict[str, Any], dims: dict[str, Any]) -> Tensor:
    shape = [s if isinstance(s, int) else
             sum((k * dims[n] for n, k in s["dims"].items()), s["const"])
             for s in output["shape"]]
    return like.new_empty(shape, dtype=torch_dtype(output["dtype"]))
