"""Weights on their way from a state dict into the tensors that a library reads."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl.errors import GraphError
from graphdsl.ir import FLOATS
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import Json
from graphdsl.recipes import recipe_inputs, run_recipe
from graphdsl.runtime.device import HOST, Device
from graphdsl.runtime.ports import listed

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime._native import Library


@dataclass(frozen=True, eq=False)
class Checked:
    """Packed weights that were found to fit, by weak reference, and where they lie: their device is
    None where there are none."""

    tensors: tuple[weakref.ref[Tensor], ...]
    addresses: tuple[int, ...]
    device: torch.device | None

    def same(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the very tensors, at the very places."""
        return (len(weights) == len(self.tensors)
                and all(ref() is w for ref, w in zip(self.tensors, weights, strict=True))
                and self.addresses == tuple(map(torch.Tensor.data_ptr, weights)))


@dataclass(frozen=True)
class WeightFormat:
    """What the params of a library look like, packed and not."""

    owner: str
    manifest: Json
    library: Library
    device: Device

    def pack(self, state_dict: Mapping[str, Tensor]) -> list[Tensor]:
        """The params of the library, in its order and format: folded, converted, copied, on the
        host and then to the current device.

        Every weight is read from `state_dict` when it is needed and not kept. Raises GraphError for
        one that is missing, unknown, on another device, or of another shape or kind.
        """
        at = self.device.current()
        declared = {w["name"]: w for w in self.manifest["weights"]}
        self._check_names(declared, state_dict)
        read: set[str] = set()
        packed = []
        for index, param in enumerate(self.manifest["params"]):
            recipe = param.get("recipe")
            names = sorted(recipe_inputs(recipe)) if recipe else [param["name"]]
            taken = {n: self._weight(declared[n], state_dict[n]) for n in names}
            read.update(names)
            tensor = run_recipe(recipe, taken) if recipe else taken[param["name"]]
            packed.append(self._packed(index, param, tensor.detach()).to(at))
        for name in declared.keys() - read:
            self._weight(declared[name], state_dict[name])
        return packed

    def _check_names(self, declared: Mapping[str, Json], found: Mapping[str, Tensor]) -> None:
        missing = sorted(declared.keys() - found.keys())
        extra = sorted(found.keys() - declared.keys())
        if missing or extra:
            what = f"weight {missing[0]} is missing" if missing else f"{extra[0]} is not a weight"
            more = len(missing or extra) - 1
            raise GraphError(f"{self.owner}: {what}" + (f", and {more} more" if more else ""),
                             hint=f"weights: {listed(declared)}")

    def _weight(self, declared: Json, found: Tensor) -> Tensor:
        """A weight of a state dict in the dtype that the layer declares."""
        label = f"{self.owner}: weight {declared['name']}"
        if not isinstance(found, torch.Tensor):
            raise GraphError(f"{label} is a {type(found).__name__}, wanted a torch.Tensor")
        kinds = dict.fromkeys((HOST, self.device.type))
        if found.device.type not in kinds:
            wanted = " or ".join("the CPU" if kind == HOST else kind for kind in kinds)
            raise GraphError(f"{label} is on {found.device}, wanted {wanted}",
                             hint="load the state dict with map_location='cpu'")
        if list(found.shape) != declared["shape"]:
            raise GraphError(f"{label} is {list(found.shape)}, wanted {declared['shape']}")
        if declared["dtype"] in FLOATS and not found.is_floating_point():
            raise GraphError(f"{label} is {found.dtype}, wanted a floating dtype",
                             hint="quantised weights are not read here")
        if declared["dtype"] not in FLOATS and found.dtype != torch_dtype(declared["dtype"]):
            raise GraphError(f"{label} is {found.dtype}, wanted {torch_dtype(declared['dtype'])}")
        return found.detach().to(HOST, torch_dtype(declared["dtype"]))

    def _packed(self, index: int, param: Json, tensor: Tensor) -> Tensor:
        dtype = torch_dtype(param["dtype"])
        if not param["packed"]:
            return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        source = tensor.to(dtype).contiguous()
        target = torch.empty(self.library.packed_bytes(index), dtype=torch.uint8, device=HOST)
        self.library.pack(index, source.data_ptr(), target.data_ptr())
        return target

    def check(self, weights: Sequence[Tensor]) -> Checked:
        """Packed weights that native code may read. Raises GraphError for any others."""
        facts = list(self._facts())
        if len(weights) != len(facts):
            raise GraphError(f"{self.owner}: {len(weights)} packed weights given, {len(facts)} "
                             "wanted", hint="pass operator.weights")
        first = weights[0].device if weights else None
        at = first if first and first.type == self.device.type else self.device.current()
        where = "the CPU" if at.type == HOST else at
        for weight, (name, dtype, shape) in zip(weights, facts, strict=True):
            fits = (weight.device == at and weight.dtype == dtype and list(weight.shape) == shape
                    and weight.is_contiguous()
                    and not (weight.requires_grad and torch.is_grad_enabled()))
            if not fits:
                raise GraphError(f"{self.owner}: packed weight {name} is {weight.dtype} "
                                 f"{list(weight.shape)} on {weight.device}, wanted a contiguous "
                                 f"{dtype} {shape} on {where} without grad",
                                 hint="pass operator.weights")
        return Checked(tuple(weakref.ref(w) for w in weights),
                       tuple(w.data_ptr() for w in weights), first)

    def _facts(self) -> Iterator[tuple[str, torch.dtype, list[int]]]:
        for index, param in enumerate(self.manifest["params"]):
            if param["packed"]:
                yield param["name"], torch.uint8, [self.library.packed_bytes(index)]
            else:
                yield param["name"], torch_dtype(param["dtype"]), param["shape"]


__all__ = ["Checked", "WeightFormat"]
