"""Checks that a step finds a block for every slot of a paged cache that it reads or writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl.errors import GraphError
from graphdsl.lazy import torch
from graphdsl.manifest import Json

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PageCheck:
    """Of every sequence, the pages up to its last position have to be in the block table.

    `positions` and `table` count the operator's inputs and states. Without positions, or where
    they are not one row a sequence, every sequence is taken to be as long as any may be.
    """

    positions: int | None
    table: int
    block: int

    @staticmethod
    def read(entry: Json, names: Sequence[str]) -> PageCheck:
        """From an entry of the manifest; `names` are those of the inputs and states."""
        at = entry["positions"]
        return PageCheck(None if at is None else names.index(at), names.index(entry["table"]),
                         entry["block"])

    def reads(self, on_host: Sequence[bool]) -> bool:
        """Whether what it reads is on the host, of all inputs and states."""
        return on_host[self.table] and (self.positions is None or on_host[self.positions])

    def sizes(self, shapes: Sequence[Sequence[int]]) -> tuple[int, int, int, int, int, int, int]:
        """What native code checks with, for tensors of these shapes: positions (-1: none), rows of
        positions and their length, table, its sequences and pages, block."""
        sequences, pages = shapes[self.table]
        if self.positions is None:
            return -1, 0, 0, self.table, sequences, pages, self.block
        shape = shapes[self.positions]
        count = 1
        for size in shape:
            count *= size
        rows = sequences if len(shape) == 2 and shape[0] == sequences else 1
        return self.positions, rows, count // rows, self.table, sequences, pages, self.block

    def _last(self, tensors: Sequence[Tensor]) -> list[int]:
        """The last position of every sequence; -1 where there is none."""
        at, rows, _, _, sequences, pages, block = self.sizes([t.shape for t in tensors])
        if at < 0:
            return [pages * block - 1] * sequences
        longest: list[int] = tensors[at].reshape(rows, -1).amax(1).tolist()
        return longest * (sequences // rows)

    def check_length(self, owner: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Raises GraphError for a position beyond the pages of its sequence."""
        pages = tensors[self.table].shape[1]
        longest, end = max(self._last(tensors)), pages * self.block
        if self.positions is not None and longest >= end:
            raise GraphError(f"{owner}: {names[self.positions]} holds {longest}, but "
                             f"{names[self.table]} has {pages} pages of {self.block} slots for a "
                             f"sequence, so that positions end at {end - 1}",
                             hint="the cache is full: make a state with more slots, or a block "
                                  "table with more pages; -1 marks padding")

    def check_blocks(self, owner: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Raises GraphError for a position whose page, or one before it, has no block."""
        table, name = tensors[self.table], names[self.table]
        what = "slots" if self.positions is None else names[self.positions]
        for sequence, position in enumerate(self._last(tensors)):
            missing = torch.nonzero(table[sequence, :position // self.block + 1] < 0)
            if position >= 0 and len(missing):
                page = int(missing[0])
                raise GraphError(f"{owner}: {what} of sequence {sequence} reach {position}, "
                                 f"but {name}[{sequence}, {page}] is -1: slots "
                                 f"{page * self.block} to {(page + 1) * self.block - 1} have no "
                                 "block", hint=f"put the number of a free block into {name}")


__all__ = ["PageCheck"]
