"""The caches of an AtbLayer: as its operator has them, and as pasts and presents of its caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from graphdsl.borders.kept import Kept
from graphdsl.layout import NZ_WIDTH
from graphdsl.lazy import torch
from graphdsl.runtime.caches import tiled, untiled

if TYPE_CHECKING:
    from torch import Tensor

ORDER = "sbnd"
"""The order of pasts and presents."""


class Caches(Protocol):
    """Buffers of keys and of values that pasts and presents [seq, batch, kv_heads, dim] are of."""

    @property
    def copied_bytes(self) -> int:
        """The bytes that were copied so far."""
        ...

    def begin(self, past: Sequence[Tensor], tokens: int) -> list[Tensor]:
        """What the operator reads and writes: the rows of `past`, and room for `tokens` more."""
        ...

    def end(self, past: int, tokens: int) -> list[Tensor]:
        """The presents, of so many rows of the past and those that the operator has written."""
        ...


class Views:
    """Presents are views of what the operator has, in the order "sbnd" or "bsnd"."""

    def __init__(self, order: str, reserve: int) -> None:
        self._kept = Kept(order, reserve)
        self._turn = [ORDER.index(axis) for axis in order]  # is its own inverse

    @property
    def copied_bytes(self) -> int:
        return self._kept.copied.total()

    def begin(self, past: Sequence[Tensor], tokens: int) -> list[Tensor]:
        start = self._kept.hold([t.permute(self._turn) for t in past], tokens)
        assert start == 0
        return list(self._kept.buffers)

    def end(self, past: int, tokens: int) -> list[Tensor]:
        return [t.permute(self._turn) for t in self._kept.view(0, past + tokens)]


@dataclass
class Tiles:
    """The operator has tiles of 16 columns (NZ), of which no present can be a view. Presents are
    views of buffers beside them, into which every step copies its new rows; a past that is no
    present of ours is copied into both."""

    reserve: int
    tiles: list[Tensor] = field(default_factory=list)
    copied: int = 0

    def __post_init__(self) -> None:
        self._kept = Kept(ORDER, self.reserve)

    @property
    def copied_bytes(self) -> int:
        return self.copied + self._kept.copied.total()

    def begin(self, past: Sequence[Tensor], tokens: int) -> list[Tensor]:
        kept, before, buffers = self._kept, self._kept.copied.total(), self._kept.buffers
        kept.hold(past, tokens)
        if kept.buffers is not buffers:
            self.tiles = [_tiles_for(buffer) for buffer in kept.buffers]
        if kept.copied.total() != before:
            count = len(past[0])
            for target, rows in zip(self.tiles, kept.view(0, count), strict=True):
                target[:, :, :count] = tiled(rows.transpose(0, 1))
            self._count(kept.view(0, count))
        return self.tiles

    def end(self, past: int, tokens: int) -> list[Tensor]:
        new = self._kept.view(past, tokens)
        for target, tiles in zip(new, self.tiles, strict=True):
            rows = untiled(tiles[:, :, past:past + tokens], *target.shape[2:])
            target.copy_(rows.transpose(0, 1))
        self._count(new)
        return list(self._kept.view(0, past + tokens))

    def _count(self, copied: Sequence[Tensor]) -> None:
        self.copied += sum(t.numel() * t.element_size() for t in copied)


def _tiles_for(buffer: Tensor) -> Tensor:
    """Tiles for the rows of a buffer [capacity, batch, kv_heads, dim], in whole tiles of rows."""
    rows, batch, heads, dim = buffer.shape
    with torch.inference_mode(False):  # others could not be written outside of it
        return buffer.new_zeros(batch, -(-heads * dim // NZ_WIDTH), -(-rows // NZ_WIDTH) * NZ_WIDTH,
                                NZ_WIDTH)


def caches_for(order: str, storage: str, reserve: int) -> Caches:
    """Those for an operator whose caches have this order and storage ("nz" or "")."""
    return Tiles(reserve) if storage == "nz" else Views(order, reserve)


__all__ = ["ORDER", "Caches", "Tiles", "Views", "caches_for"]
