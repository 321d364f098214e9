"""KV caches between their logical shape and what lies in memory, in every layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl.layout import SCALE_BYTES, Layout
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import Json

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 127
"""What the largest number of a row becomes where it is stored as int8."""


@dataclass(frozen=True)
class Filled:
    """Caches whose rows are known by their logical places: what a test or a trial of an operator
    begins with. `before` and `after` are the lengths [batch] of the sequences around one step."""

    manifest: Json
    before: Tensor
    after: Tensor

    @staticmethod
    def of(manifest: Json, inputs: Mapping[str, Tensor], batch: int, slots: int) -> Filled:
        """For a step on these inputs: its positions say how long the sequences are. Where none of
        the inputs has positions, all slots count."""
        for port in manifest["inputs"]:
            if any(low == -1 for low, _ in port.get("ranges", ())):
                positions = inputs[port["name"]].long()
                positions = positions if positions.dim() == 2 else positions.expand(batch, -1)
                after = positions.amax(1) + 1
                return Filled(manifest, after - (positions >= 0).sum(1), after)
        whole = torch.full((batch,), slots)
        return Filled(manifest, whole, whole)

    def state(self, caches: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """The state that `caches` [batch, slots, kv_heads, dim] are in memory. The blocks of paged
        ones are given out in a random order, and there is one that no sequence has."""
        table = self._table(caches, seed)
        made = {}
        for port in self.manifest["state"]:
            name = port["name"]
            made[name] = table.clone() if "layout" not in port else physical(
                caches[name], port, table=table, blocks=table.numel() + 1, lengths=self.before)
        return made

    def caches(self, state: Mapping[str, Tensor], slots: int) -> dict[str, Tensor]:
        """What the caches of `state` mean after the step, cut to `slots`."""
        ports = {p["name"]: p for p in self.manifest["state"]}
        tables = [state[name] for name, port in ports.items() if "layout" not in port]
        table = tables[0] if tables else None
        return {name: logical(state[name], port, table=table, lengths=self.after)[:, :slots]
                for name, port in ports.items() if "layout" in port}

    def held(self, caches: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of `caches` before the step, what the layouts can hold: one that shifts has no rows
        beyond the lengths, so that there they are 0."""
        made = dict(caches)
        for port in self.manifest["state"]:
            if port.get("layout", {}).get("policy") == "shift":
                made[port["name"]] = _cut(caches[port["name"]], self.before)
        return made

    def _table(self, caches: Mapping[str, Tensor], seed: int) -> Tensor:
        blocks = [port["layout"]["block"] for port in self.manifest["state"] if "layout" in port]
        block = max(blocks, default=0)
        if not block:
            return torch.zeros(0, dtype=torch.int32)
        batch, slots = next(iter(caches.values())).shape[:2]
        pages = -(-slots // block)
        order = torch.randperm(batch * pages + 1, generator=torch.Generator().manual_seed(seed))
        return order[1:].int().view(batch, pages)


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
    if layout.policy == "shift":
        assert lengths is not None, port["name"]
        rows = _shifted(rows, rows.shape[1] - lengths)
    elif layout.policy == "paged":
        assert table is not None, port["name"]
        rows = _pool(rows, table, blocks, layout.block)
    return rows.permute(layout.permutation).contiguous()


def logical(tensor: Tensor, port: Json, *, table: Tensor | None = None,
            lengths: Tensor | None = None) -> Tensor:
    """What a state in memory means: [batch, slots, kv_heads, dim] of the dtype that it has
    logically. The rest is as for `physical`; of a cache that shifts the rows beyond the lengths are
    0, and so are the slots of a page without a block."""
    layout = Layout(**port["layout"])
    order = layout.permutation
    rows = tensor.permute([order.index(axis) for axis in range(len(order))]).contiguous()
    if layout.policy == "shift":
        assert lengths is not None, port["name"]
        rows = _shifted(rows, lengths - rows.shape[1])
    elif layout.policy == "paged":
        assert table is not None, port["name"]
        held = rows[table.long().clamp(min=0)] * (table >= 0)[..., None, None, None].to(rows.dtype)
        rows = held.flatten(1, 2)
    return dequantised(rows, torch_dtype(port["dtype"])) if layout.storage == "int8" else rows


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
    source = torch.arange(rows.shape[1]) - by.long()[:, None]
    inside = (source >= 0) & (source < rows.shape[1])
    batch = torch.arange(rows.shape[0])[:, None]
    moved = rows[batch, source.clamp(0, rows.shape[1] - 1)]
    return torch.where(inside[..., None, None], moved, torch.zeros_like(moved))


def _cut(rows: Tensor, lengths: Tensor) -> Tensor:
    """Rows [batch, slots, ...], 0 beyond the lengths [batch]."""
    used = torch.arange(rows.shape[1]) < lengths[:, None]
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


__all__ = ["dequantised", "logical", "physical", "quantised"]
