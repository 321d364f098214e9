"""Buffers of keys and values with spare rows, so that most steps of a cache copy nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphdsl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

GROWTH, REORDER, WINDOW = "growth", "reorder", "window"
"""Why rows are copied: a buffer is full, a caller has new tensors, as after reordered beams, or the
rows that a window still sees go back to the front."""


@dataclass
class Kept:
    """The caches of one layer in buffers of their own, of which the caller has views of some rows.

    `order` is that of the axes ("bnsd", "bsnd" or "sbnd"; in "sbnd" views are contiguous),
    `reserve` the rows that a new buffer has to spare, `copied` counts the bytes that were copied,
    by cause. Rows that a caller has been shown are written again only if it comes with a view that
    ends before them, or with other tensors.
    """

    order: str = "bnsd"
    reserve: int = 1024
    copied: Counter[str] = field(default_factory=Counter)
    buffers: tuple[Tensor, ...] = ()

    @property
    def axis(self) -> int:
        """The axis of the rows."""
        return self.order.index("s")

    @property
    def capacity(self) -> int:
        """The rows that the buffers have."""
        return self.buffers[0].shape[self.axis] if self.buffers else 0

    def view(self, start: int, count: int) -> tuple[Tensor, ...]:
        """`count` rows of every buffer from row `start` on."""
        return tuple(buffer.narrow(self.axis, start, count) for buffer in self.buffers)

    def hold(self, tensors: Sequence[Tensor], more: int, *, window: bool = False) -> int:
        """The row at which `tensors` begin in the buffers, with room for `more` rows behind them.

        Nothing is copied where they are views of the buffers that end early enough. Tensors that
        are not are taken in. A buffer that is full becomes twice as long or, for a `window`, of
        which the caller keeps only the last rows, begins again with those. Without a `window` the
        row is 0.
        """
        count = tensors[0].shape[self.axis]
        start = self._start(tensors) if count else None
        if start and not window:
            start = None
        if start is not None and start + count + more <= self.capacity:
            return start
        cause = REORDER if start is None else WINDOW if window else GROWTH
        least = 2 * self.capacity if cause == GROWTH else 0
        if start is not None or not count or not self._fits(tensors, count + more):
            self._allocate(tensors, max(count + more + self.reserve, least))
        for target, tensor in zip(self.view(0, count), tensors, strict=True) if count else ():
            target.copy_(tensor)
            self.copied[cause] += tensor.numel() * tensor.element_size()
        return 0

    def _start(self, tensors: Sequence[Tensor]) -> int | None:
        """The row at which tensors begin that are views of the same rows of the buffers."""
        starts = {self._row(*pair) for pair in zip(self.buffers, tensors, strict=False)}
        return starts.pop() if len(starts) == 1 else None

    def _row(self, buffer: Tensor, tensor: Tensor) -> int | None:
        axis = self.axis
        alike = (tensor.dtype == buffer.dtype and tensor.stride() == buffer.stride()
                 and _others(tensor, axis) == _others(buffer, axis)
                 and _storage(tensor) == _storage(buffer))
        if not alike:
            return None
        row, rest = divmod(int(tensor.storage_offset()), buffer.stride(axis))
        inside = not rest and row + tensor.shape[axis] <= buffer.shape[axis]
        return row if inside else None

    def _fits(self, tensors: Sequence[Tensor], rows: int) -> bool:
        """Whether other tensors can be taken into the buffers as they are."""
        return (rows <= self.capacity and len(tensors) == len(self.buffers)
                and all(_writable(b) and _storage(t) != _storage(b) and t.dtype == b.dtype
                        and _others(t, self.axis) == _others(b, self.axis)
                        for t, b in zip(tensors, self.buffers, strict=True)))

    def _allocate(self, tensors: Sequence[Tensor], rows: int) -> None:
        # Tensors made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self.buffers = tuple(
                torch.zeros([rows if i == self.axis else size for i, size in enumerate(t.shape)],
                            dtype=t.dtype, device=t.device) for t in tensors)


def _others(tensor: Tensor, axis: int) -> list[int]:
    """The sizes of all axes but one."""
    return [size for i, size in enumerate(tensor.shape) if i != axis]


def _writable(tensor: Tensor) -> bool:
    """torch writes to tensors of the inference mode only in that mode."""
    return torch.is_inference_mode_enabled() or not tensor.is_inference()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
