"""The dims of a plan: how large they may be, and those that are computed from others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.manifest import Json
from graphdsl.runtime.ports import Extent, Port


@dataclass(frozen=True)
class PlanDim:
    """A dim of the manifest. One that `equals` something is no size of a tensor: slots of a paged
    cache are those that the pages of the block table have."""

    name: str
    lo: int
    hi: int
    equals: Extent | None = None

    @staticmethod
    def read(dim: Json) -> PlanDim:
        """From an entry of the manifest."""
        equals = Extent.read(dim["equals"]) if "equals" in dim else None
        return PlanDim(dim["name"], dim["lo"], dim["hi"], equals)

    @property
    def step(self) -> int:
        """What it grows by; the last page may reach beyond `hi`."""
        return max((factor for _, factor in self.equals.terms), default=1) if self.equals else 1

    def check(self, owner: str, dims: dict[str, Any]) -> None:
        """Adds it where no tensor has it. Raises GraphError where it is not what it may be."""
        if self.equals is not None:
            derived = self.equals.value(dims)
            if dims.setdefault(self.name, derived) != derived:
                raise GraphError(f"{owner}: {self.name} is {dims[self.name]}, but {self.equals} is "
                                 f"{derived}",
                                 hint="a mask or cache has as many slots as the pages of a "
                                      "sequence in the block table")
        found = dims.setdefault(self.name, self.lo)
        if not self.lo <= found < self.hi + self.step:
            raise GraphError(f"{owner}: {self.name} is {found}, wanted {self.lo} to {self.hi}")


def settle(dims: Iterable[PlanDim], sizes: dict[str, Any]) -> None:
    """Adds the dims that are computed from those in `sizes`, which may be symbolic."""
    for dim in dims:
        if dim.equals is not None:
            sizes.setdefault(dim.name, dim.equals.value(sizes))


def sources(dims: Sequence[PlanDim], ports: Sequence[Port]) -> list[tuple[int, int]]:
    """The port and axis at which every dim can be read, where one simply has that size."""
    found: dict[str, tuple[int, int]] = {}
    for number, port in enumerate(ports):
        for axis, extent in enumerate(port.shape):
            if extent.dim:
                found.setdefault(extent.dim, (number, axis))
    return [found[dim.name] for dim in dims if dim.name in found]


__all__ = ["PlanDim", "settle", "sources"]
