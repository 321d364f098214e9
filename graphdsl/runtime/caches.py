"""KV caches between their logical shape and what lies in memory, in every layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl.layout import NZ_WIDTH, SCALE_BYTES, Layout
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import Json

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 127
"""What the largest number of a row becomes where it is stored as int8."""


@dataclass(frozen=True)
class Filled:
    """Caches whose rows are known by their logical places: what a test or a trial of an operator
    begins with. `before` and `after` are the lengths [batch] of the sequences around one step;
    the block table gives out all blocks but one, in a random order."""

    manifest: Json
    slots: int
    before: Tensor
    after: Tensor
    table: Tensor

    @staticmethod
    def of(manifest: Json, inputs: Mapping[str, Tensor], dims: Mapping[str, int],
           seed: int = 0) -> Filled:
        """For a step on these logical inputs, whose positions say how long the sequences are.
        Where there are none, all slots count."""
        batch, slots = dims.get("batch", 1), dims.get("slots", 0)
        before = after = torch.full((batch,), slots)
        for port in manifest["inputs"]:
            if any(low == -1 for low, _ in port.get("ranges", ())):
                positions = inputs[port["name"]].long()
                positions = positions if positions.dim() == 2 else positions.expand(batch, -1)
                after = positions.amax(1) + 1
                before = after - (positions >= 0).sum(1)
                break
        pages = -(-slots // max(_block(manifest), 1))
        order = torch.randperm(batch * pages + 1, generator=torch.Generator().manual_seed(seed))
        return Filled(manifest, slots, before, after, order[1:].int().view(batch, pages))

    def inputs(self, given: Mapping[str, Tensor]) -> list[Tensor]:
        """The inputs in the order of the manifest, caches among them as they lie in memory."""
        return [self._in_memory(given, port) if "layout" in port else given[port["name"]]
                for port in self.manifest["inputs"]]

    def state(self, caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state that `caches` [batch, slots, kv_heads, dim] are in memory."""
        return {port["name"]: self._in_memory(caches, port) if "layout" in port
                else self.table.clone() for port in self.manifest["state"]}

    def caches(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the caches of `state` mean after the step."""
        return {port["name"]: logical(state[port["name"]], port, table=self.table,
                                      lengths=self.after)[:, :self.slots]
                for port in self.manifest["state"] if "layout" in port}

    def held(self, caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of `caches` before the step, what the layouts can hold: one that shifts has no rows
        beyond the lengths, so that there they are 0."""
        made = dict(caches)
        for port in self.manifest["state"]:
            if port.get("layout", {}).get("policy") == "shift":
                made[port["name"]] = _cut(caches[port["name"]], self.before)
        return made

    def _in_memory(self, caches: Mapping[str, Tensor], port: Json) -> Tensor:
        return physical(caches[port["name"]], port, table=self.table,
                        blocks=self.table.numel() + 1, lengths=self.before)


def _block(manifest: Json) -> int:
    """The slots of a block of paged caches; 0 where there are none."""
    ports = (*manifest["inputs"], *manifest["state"])
    return max((port["layout"]["block"] for port in ports if "layout" in port), default=0)


def physical(tensor: Tensor, port: Json, *, table: Tensor | None = None, blocks: int = 0,
             lengths: Tensor | None = None) -> Tensor:
    """A state of logical shape [batch, slots, kv_heads, dim] as it lies in memory.

    `port` is its entry in the manifest. A paged one needs the block table [batch, pages] and the
    number of blocks of the pool, of which those that the table does not name are 0; the slots may
    be fewer than its pages have. One that shifts needs the lengths [batch] of the sequences: the
    rows beyond them are dropped.
    """
    layout = Layout(**port["layout"])
    rows = quantised(tensor) if layout.storage == "int8" else tensor
    table, lengths = _beside(tensor, table), _beside(tensor, lengths)
    if layout.policy == "shift":
        assert lengths is not None, port["name"]
        rows = _shifted(rows, rows.shape[1] - lengths)
    elif layout.policy == "paged":
        assert table is not None, port["name"]
        rows = _pool(rows, table, blocks, layout.block)
    if layout.storage == "nz":
        return tiled(rows)
    return rows.permute(layout.permutation).contiguous()


def logical(tensor: Tensor, port: Json, *, table: Tensor | None = None,
            lengths: Tensor | None = None) -> Tensor:
    """What a state in memory means: [batch, slots, kv_heads, dim] of the dtype that it has
    logically. The rest is as for `physical`; of a cache that shifts the rows beyond the lengths are
    0, and so are the slots of a page without a block."""
    layout = Layout(**port["layout"])
    order = layout.permutation
    table, lengths = _beside(tensor, table), _beside(tensor, lengths)
    if layout.storage == "nz":
        heads, dim = port["shape"][2:]
        rows = untiled(tensor, heads, dim)
    else:
        rows = tensor.permute([order.index(axis) for axis in range(len(order))]).contiguous()
    if layout.policy == "shift":
        assert lengths is not None, port["name"]
        rows = _shifted(rows, lengths - rows.shape[1])
    elif layout.policy == "paged":
        assert table is not None, port["name"]
        held = rows[table.long().clamp(min=0)] * (table >= 0)[..., None, None, None].to(rows.dtype)
        rows = held.flatten(1, 2)
    return dequantised(rows, torch_dtype(port["dtype"])) if layout.storage == "int8" else rows


def _beside(tensor: Tensor, numbers: Tensor | None) -> Tensor | None:
    """Numbers, which the host has, on the device of the tensor that they are for."""
    return None if numbers is None else numbers.to(tensor.device)


def tiled(rows: Tensor) -> Tensor:
    """[b, slots, heads, dim] as [b, heads * dim / 16, slots, 16]: columns in tiles of 16, of which
    the last may be padded with 0."""
    flat = rows.flatten(2)
    width = -(-flat.shape[2] // NZ_WIDTH) * NZ_WIDTH
    padded = torch.nn.functional.pad(flat, (0, width - flat.shape[2]))
    tiles = padded.view(*flat.shape[:2], width // NZ_WIDTH, NZ_WIDTH)
    return tiles.transpose(1, 2).contiguous()


def untiled(tiles: Tensor, heads: int, dim: int) -> Tensor:
    """What `tiled` rows stand for."""
    flat = tiles.transpose(1, 2).flatten(2)[..., :heads * dim]
    return flat.reshape(*flat.shape[:2], heads, dim)


def quantised(rows: Tensor) -> Tensor:
    """[..., dim] as int8 [..., dim + 4]: rows of numbers and the bytes of the f32 that they are
    multiplied with, the largest of the row / 127. Halves are rounded to even."""
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True) / LARGEST
    numbers = torch.where(scale > 0, wide / scale, 0).round().to(torch.int8)
    return torch.cat([numbers, scale.contiguous().view(torch.int8)], -1)


def dequantised(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantised` rows stand for."""
    scale = rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (rows[..., :-SCALE_BYTES].float() * scale).to(dtype)


def _shifted(rows: Tensor, by: Tensor) -> Tensor:
    """Rows [batch, slots, ...] moved towards the end of each sequence; 0 where none comes from."""
    source = torch.arange(rows.shape[1], device=rows.device) - by.long()[:, None]
    inside = (source >= 0) & (source < rows.shape[1])
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None]
    moved = rows[batch, source.clamp(0, rows.shape[1] - 1)]
    return torch.where(inside[..., None, None], moved, torch.zeros_like(moved))


def _cut(rows: Tensor, lengths: Tensor) -> Tensor:
    """Rows [batch, slots, ...], 0 beyond the lengths [batch]."""
    used = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    return torch.where(used[..., None, None], rows, torch.zeros_like(rows))


def _pool(rows: Tensor, table: Tensor, blocks: int, block: int) -> Tensor:
    """[blocks, block, kv_heads, dim] with the rows of every sequence in its blocks."""
    batch, pages = table.shape
    padded = rows.new_zeros(batch, pages * block, *rows.shape[2:])
    padded[:, :rows.shape[1]] = rows
    pool = rows.new_zeros(blocks, block, *rows.shape[2:])
    given = table >= 0
    pool[table[given].long()] = padded.view(batch, pages, block, *rows.shape[2:])[given]
    return pool


__all__ = ["dequantised", "logical", "physical", "quantised", "tiled", "untiled"]
