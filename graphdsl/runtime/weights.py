"""Weights on their way from a state dict into the tensors that a library reads."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from graphdsl.errors import GraphError
from graphdsl.ir import FLOATS
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import Json
from graphdsl.quant import Quant, Quantised, round_to_nearest
from graphdsl.recipes import (
    Part,
    of_parts,
    parts_of,
    recipe_inputs,
    run_quantised,
    run_recipe,
    transposed_inputs,
)
from graphdsl.runtime.device import HOST, Device
from graphdsl.runtime.ports import listed

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime._native import Addresses, Library


@dataclass(frozen=True, eq=False)
class Checked:
    """Packed weights that were found to fit, by weak reference, and where they lie: their device is
    None where there are none."""

    tensors: tuple[weakref.ref[Tensor], ...]
    addresses: tuple[int, ...]
    device: torch.device | None

    @cached_property
    def table(self) -> Addresses:
        """The addresses as plans take them."""
        from graphdsl.runtime._native import Addresses

        return Addresses(self.addresses)

    def same(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the very tensors, at the very places."""
        return (len(weights) == len(self.tensors)
                and all(ref() is w for ref, w in zip(self.tensors, weights, strict=True))
                and self.addresses == tuple(map(torch.Tensor.data_ptr, weights)))


@runtime_checkable
class PartReader(Protocol):
    """A state dict that can read a part of a weight alone."""

    def part(self, name: str, axis: int, start: int, size: int) -> Tensor: ...


@dataclass(frozen=True)
class WeightFormat:
    """What the params of a library look like, packed and not."""

    owner: str
    manifest: Json
    library: Library
    device: Device

    def pack(self, state_dict: Mapping[str, Tensor | Quantised]) -> list[Tensor]:
        """The params of the library, in its order and format: folded, converted, copied, on the
        host and then to the current device.

        Every weight is read from `state_dict` when it is needed and not kept; of one that has a
        `part` (see PartReader), only what a rank needs is read. Raises GraphError for
        one that is missing, unknown, on another device, or of another shape or kind.
        """
        at = self.device.current()
        declared = {w["name"]: w for w in self.manifest["weights"]}
        self._check_names(declared, state_dict)
        read: set[str] = set()
        packed = []
        for index, param in enumerate(self.manifest["params"]):
            recipe = param.get("recipe")
            names = _sources(param)
            read.update(names)
            parts = None if recipe is None or "quant" in param else parts_of(recipe)
            if recipe and parts and isinstance(state_dict, PartReader):
                tensor = run_recipe(of_parts(recipe), {
                    text: self._part(declared[part.name], part, state_dict)
                    for text, part in parts.items()})
                packed.append(self._packed(index, param, tensor.detach()).to(at))
                continue
            taken = {n: self._weight(declared[n], state_dict[n]) for n in names}
            if "quant" in param:
                packed.append(self._packed_quantised(index, self._quantised(param, taken)).to(at))
                continue
            tensors = {n: self._floating(n, weight) for n, weight in taken.items()}
            tensor = run_recipe(recipe, tensors) if recipe else tensors[param["name"]]
            packed.append(self._packed(index, param, tensor.detach()).to(at))
        for name in declared.keys() - read:
            self._weight(declared[name], state_dict[name])
        return packed

    def _part(self, declared: Json, part: Part, reader: PartReader) -> Tensor:
        """A part of a weight, which alone is read."""
        shape = list(declared["shape"])
        shape[part.axis] = part.size
        found = reader.part(part.name, part.axis, part.start, part.size)
        return self._floating(part.name, self._weight({**declared, "shape": shape}, found))

    def dequantised(self, weights: Mapping[str, Tensor | Quantised]) -> dict[str, Tensor]:
        """The weights that the library computes with: those that it has quantised as the f32
        numbers that they stand for, the others as they are."""
        declared = {w["name"]: w for w in self.manifest["weights"]}
        found: dict[str, Tensor | Quantised] = dict(weights)
        for param in self.manifest["params"]:
            quant, recipe = read_quant(param), param.get("recipe")
            turned = transposed_inputs(recipe) if recipe else set()
            for name in _sources(param) if quant else ():
                weight = self._weight(declared[name], weights[name])
                assert quant is not None
                if isinstance(weight, Quantised):
                    found[name] = weight.dequantised()
                elif name in turned:
                    found[name] = round_to_nearest(weight.t(), quant).dequantised().t()
                else:
                    found[name] = round_to_nearest(weight, quant).dequantised()
        return {name: self._floating(name, weight) for name, weight in found.items()}

    def _quantised(self, param: Json, taken: Mapping[str, Tensor | Quantised]) -> Quantised:
        """A param in its format: what is quantised is taken as it is, the rest is rounded."""
        quant, recipe = read_quant(param), param.get("recipe")
        assert quant is not None
        tensors = {n: w for n, w in taken.items() if not isinstance(w, Quantised)}
        if len(tensors) == len(taken):
            tensor = run_recipe(recipe, tensors) if recipe else tensors[param["name"]]
            return self._rounded(", ".join(taken), tensor, quant)
        given = {n: w if isinstance(w, Quantised) else self._rounded(n, w, quant)
                 for n, w in taken.items()}
        for name, weight in given.items():
            if not quant.holds(weight.quant):
                raise GraphError(f"{self.owner}: weight {name} is {weight.quant}, which a build "
                                 f"for {quant} does not hold", hint="build for the format that "
                                 "the weights have, or give weight.dequantised()")
        made = run_quantised(recipe, given) if recipe else given[param["name"]]
        return made.held_in(quant)

    def _rounded(self, names: str, tensor: Tensor, quant: Quant) -> Quantised:
        # The least and the most are NaN where a number is; isfinite of all would copy them twice.
        if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise GraphError(f"{self.owner}: weight {names} has numbers that are not finite, so it "
                             "cannot be quantised", hint="the weights may be damaged")
        return round_to_nearest(tensor, quant)

    def _floating(self, name: str, weight: Tensor | Quantised) -> Tensor:
        if isinstance(weight, Quantised):
            raise GraphError(f"{self.owner}: weight {name} is quantised ({weight.quant}), wanted a "
                             "torch.Tensor: the build has it in its dtype",
                             hint="weight.dequantised(), or a build with quantize=")
        return weight

    def _check_names(self, declared: Mapping[str, Json],
                     found: Mapping[str, Tensor | Quantised]) -> None:
        missing = sorted(declared.keys() - found.keys())
        extra = sorted(found.keys() - declared.keys())
        if missing or extra:
            what = f"weight {missing[0]} is missing" if missing else f"{extra[0]} is not a weight"
            more = len(missing or extra) - 1
            raise GraphError(f"{self.owner}: {what}" + (f", and {more} more" if more else ""),
                             hint=f"weights: {listed(declared)}")

    def _weight(self, declared: Json, found: Tensor | Quantised) -> Tensor | Quantised:
        """A weight of a state dict in the dtype that the layer declares; one that is quantised in
        the library as it is, for nothing is gained by rounding it twice."""
        label = f"{self.owner}: weight {declared['name']}"
        if isinstance(found, Quantised):
            if list(found.shape) != declared["shape"]:
                raise GraphError(f"{label} is {list(found.shape)}, wanted {declared['shape']}")
            if not found.is_finite():
                raise GraphError(f"{label} has scales that are not finite",
                                 hint="the weights may be damaged")
            return found
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
                             hint="graphdsl.quant.Quantised holds quantised weights")
        if declared["dtype"] not in FLOATS and found.dtype != torch_dtype(declared["dtype"]):
            raise GraphError(f"{label} is {found.dtype}, wanted {torch_dtype(declared['dtype'])}")
        plain = found.detach().to(HOST)
        return plain if "quant" in declared else plain.to(torch_dtype(declared["dtype"]))

    def _packed(self, index: int, param: Json, tensor: Tensor) -> Tensor:
        dtype = torch_dtype(param["dtype"])
        if not param["packed"]:
            return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        source = tensor.to(dtype).contiguous()
        target = torch.empty(self.library.packed_bytes(index), dtype=torch.uint8, device=HOST)
        self.library.pack(index, source.data_ptr(), target.data_ptr())
        return target

    def _packed_quantised(self, index: int, weight: Quantised) -> Tensor:
        values, scales = weight.values.contiguous(), weight.scales.contiguous()
        offsets = None if weight.offsets is None else weight.offsets.contiguous()
        target = torch.empty(self.library.packed_bytes(index), dtype=torch.uint8)
        self.library.pack_quantised(index, values.data_ptr(), scales.data_ptr(),
                                    0 if offsets is None else offsets.data_ptr(),
                                    target.data_ptr())
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


def read_quant(param: Json) -> Quant | None:
    """The format in an entry of the manifest."""
    return Quant(**param["quant"]) if "quant" in param else None


def _sources(param: Json) -> list[str]:
    """The weights that a param is made of."""
    recipe = param.get("recipe")
    return sorted(recipe_inputs(recipe)) if recipe else [param["name"]]


__all__ = ["Checked", "WeightFormat", "read_quant"]
