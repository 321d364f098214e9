"""The tensors that an operator takes and gives, as the manifest declares them, and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import ORDERS, Dim, Layout, Size, affine
from graphdsl.layout import NZ_WIDTH
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import Json, size_json
from graphdsl.runtime.device import HOST

if TYPE_CHECKING:
    from torch import Tensor


HINTS = {"slots": "the cache is full: make a state with more slots; -1 marks padding",
         "blocks": "it holds numbers of blocks of the pool; -1 marks a page without one"}
"""What to do about a number that has to be below one of these dims."""


@dataclass(frozen=True)
class Extent:
    """A size: a constant and a multiple of some dims."""

    terms: tuple[tuple[str, int], ...]
    const: int

    @staticmethod
    def read(size: Any) -> Extent:
        """From the manifest's JSON: an int, or {"dims": {name: factor}, "const": n}."""
        if isinstance(size, int):
            return Extent((), size)
        return Extent(tuple(size["dims"].items()), size["const"])

    @property
    def dim(self) -> str | None:
        """The dim that this size simply is."""
        plain = len(self.terms) == 1 and self.terms[0][1] == 1 and self.const == 0
        return self.terms[0][0] if plain else None

    @property
    def size(self) -> Size:
        """The same as a size of the IR."""
        return affine({Dim(name): k for name, k in self.terms}, self.const)

    def value(self, dims: Mapping[str, Any]) -> Any:
        """The number it stands for; numbers may be symbolic ones of torch."""
        return sum((k * dims[name] for name, k in self.terms), self.const)

    def settle(self, size: Any, dims: dict[str, Any]) -> None:
        """Adds the one dim that is not known yet and that this size settles."""
        unknown = [(name, k) for name, k in self.terms if name not in dims]
        if len(unknown) == 1:
            name, factor = unknown[0]
            rest = Extent(tuple(t for t in self.terms if t[0] != name), self.const)
            dims[name] = (size - rest.value(dims)) // factor

    def __str__(self) -> str:
        parts = [name if k == 1 else f"{k}*{name}" for name, k in self.terms]
        return " + ".join(parts + ([str(self.const)] if self.const or not parts else []))


@dataclass(frozen=True)
class Port:
    """One tensor: its dtype and its sizes as they lie in memory, the ranges in which its numbers
    lie, for a KV state its layout and its logical sizes [batch, slots, kv_heads, dim], and the kind
    of device it is on."""

    name: str
    type: str
    shape: tuple[Extent, ...]
    ranges: tuple[tuple[Extent, Extent], ...] = ()
    layout: Layout | None = None
    logical: tuple[Extent, ...] = ()
    device: str = HOST

    @staticmethod
    def read(port: Json, device: str = HOST) -> Port:
        """From an entry of the manifest, whose tensors are on `device`."""
        logical, dtype = tuple(Extent.read(s) for s in port["shape"]), port["dtype"]
        shape, layout = logical, None
        if "layout" in port:
            layout = Layout(**port["layout"])
            shape = in_memory(logical, layout)
            dtype = "int8" if layout.storage == "int8" else dtype
        ranges = tuple((Extent.read(low), Extent.read(high))
                       for low, high in port.get("ranges", ()))
        return Port(port["name"], dtype, shape, ranges, layout, logical,
                    HOST if port.get("host") else device)

    @cached_property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.type)

    def sizes(self, dims: Mapping[str, Any]) -> list[Any]:
        """The shape for these dims."""
        return [extent.value(dims) for extent in self.shape]

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.shape))}]"

    def bind(self, label: str, found: Sequence[Any], dims: dict[str, Any]) -> None:
        """Adds the dims that a shape settles. Raises GraphError for one that does not fit."""
        before = dict(dims)
        if len(found) != len(self.shape):
            raise GraphError(f"{label} has {len(found)} dims {list(found)}, wanted {self}")
        for extent, size in zip(self.shape, found, strict=True):
            extent.settle(size, dims)
            wanted = extent.value(dims)
            if size != wanted:
                raise GraphError(f"{label} is {list(found)}, wanted {self}: {extent} is {size}, "
                                 f"but it has to be {wanted}", hint=self._other(found, before))

    def _other(self, found: Sequence[Any], dims: Mapping[str, Any]) -> str:
        """What a KV state of this shape would be instead; nothing where that is not known."""
        if self.layout is None:
            return ""
        own = self.layout
        s = 2 if own.storage == "nz" else own.order.index("s")
        if own.block and fits(in_memory(self.logical, replace(own, block=found[s])), found, dims):
            return f"the pool has blocks of {found[s]} slots, the build has blocks of {own.block}"
        for order in ORDERS:
            if fits(in_memory(self.logical, replace(own, order=order)), found, dims):
                return f"the shape is that of {order}, the build has {own}"
        return ""

    def check(self, owner: str, tensor: Tensor, dims: dict[str, int]) -> None:
        """Raises GraphError for a tensor that native code must not see; adds to `dims`."""
        label = f"{owner}: {self.name}"
        if not isinstance(tensor, torch.Tensor):
            raise GraphError(f"{label} is a {type(tensor).__name__}, wanted a torch.Tensor")
        if tensor.device.type != self.device:
            wanted = "the CPU" if self.device == HOST else self.device
            raise GraphError(f"{label} is on {tensor.device}, wanted {wanted}",
                             hint=f"{self.name}.{self.device}()")
        if tensor.layout is not torch.strided:
            raise GraphError(f"{label} is {tensor.layout}, wanted a dense tensor",
                             hint=f"{self.name}.to_dense()")
        if tensor.dtype != self.dtype:
            hint = f"{self.name}.to({self.dtype})"
            if self.layout:
                hint = f"operator.new_state(batch, slots) makes it: {self.layout} of {self}"
            raise GraphError(f"{label} is {tensor.dtype}, wanted {self.dtype}", hint=hint)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise GraphError(f"{label} requires grad, and a built operator has no backward",
                             hint="call it under torch.no_grad() or torch.inference_mode()")
        self.bind(label, tensor.shape, dims)
        self._check_tiles(label, tensor)
        if not tensor.is_contiguous():
            raise GraphError(f"{label} is not contiguous", hint=f"{self.name}.contiguous()")

    def _check_tiles(self, label: str, tensor: Tensor) -> None:
        """Raises GraphError for slots that do not fill their tiles; of paged caches the build has
        checked the blocks."""
        if self.layout and self.layout.storage == "nz" and tensor.shape[2] % NZ_WIDTH:
            raise GraphError(f"{label} has {tensor.shape[2]} slots, wanted a multiple of "
                             f"{NZ_WIDTH}: its tiles have {NZ_WIDTH} rows",
                             hint="operator.new_state(batch, slots) rounds them up")

    def check_range(self, owner: str, tensor: Tensor, dims: Mapping[str, int]) -> None:
        """Raises GraphError for an index that would read or write beyond what it indexes."""
        least, most = (int(x) for x in torch.aminmax(tensor)) if self.ranges else (0, 0)
        for extents in self.ranges:
            low, high = (extent.value(dims) for extent in extents)
            if least >= low and most < high:
                continue
            hint = HINTS.get(extents[1].dim or "",
                             "the highest is the size of what is indexed, less 1")
            raise GraphError(f"{owner}: {self.name} holds {least if least < low else most}, "
                             f"wanted {low} to {high - 1}", hint=hint)


def listed(names: Iterable[Any], most: int = 8) -> str:
    """The names, cut short where there are many."""
    items = list(names)
    more = f", ... {len(items) - most} more" if len(items) > most else ""
    return (", ".join(map(str, items[:most])) + more) or "none"


def in_memory(logical: Sequence[Extent], layout: Layout) -> tuple[Extent, ...]:
    """The sizes in memory of a KV state of these logical sizes."""
    b, s, n, d = (extent.size for extent in logical)
    return tuple(Extent.read(size_json(size)) for size in layout.physical((b, s, n, d)))


def fits(shape: Sequence[Extent], found: Sequence[Any], dims: Mapping[str, Any]) -> bool:
    """Whether a tensor may have these sizes, as far as the dims are known."""
    settled = dict(dims)
    for extent, size in zip(shape, found, strict=True):
        extent.settle(size, settled)
        if extent.value(settled) != size:
            return False
    return True


__all__ = ["Extent", "Port", "fits", "in_memory", "listed"]
