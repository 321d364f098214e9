"""Where the buffers of a plan lie in one workspace, and the least that any placement needs.

A library places its buffers itself when a plan is made, for only then are sizes known; this is the
same algorithm, for reports and tests that have no library.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphdsl.call_plan import CallPlan

ALIGNMENT = 64
TRIES = 32
SHORT, LONG = 1, 512
"""Tokens of the two lengths that a report is made for."""

Bytes = Callable[[str, Mapping[str, int]], int]
"""The number that C text of a size stands for."""


@dataclass(frozen=True)
class Live:
    """A buffer of `bytes`, in use from one tick to another, both included."""

    bytes: int
    start: int
    end: int

    def meets(self, other: Live) -> bool:
        return self.start <= other.end and other.start <= self.end


@dataclass(frozen=True)
class Usage:
    """Bytes of a workspace, and the largest sum of what lives at one tick: no placement needs
    less."""

    peak: int
    bound: int

    @property
    def ratio(self) -> float:
        return self.peak / self.bound if self.bound else 1.0


def usage(plan: CallPlan, size: Bytes, dims: Mapping[str, int]) -> Usage:
    """What the plan needs where its dims have these values."""
    known = dict(dims) | {d.name: d.hi for d in plan.step_dims}
    live = [Live(size(b.bytes, known), b.start, b.end) for b in plan.buffers]
    return Usage(peak_of(live), bound_of(live))


def bound_of(live: Sequence[Live]) -> int:
    """The largest sum of living bytes at any tick."""
    return max((sum(b.bytes for b in live if b.start <= a.start <= b.end) for a in live),
               default=0)


def peak_of(live: Sequence[Live]) -> int:
    """The bytes of the best placement that is found: largest first, by the product of size and
    length, longest first, and then again and again with the buffer that ended highest placed
    before all others, until 2 % of the bound are left."""
    orders: tuple[Callable[[Live], int], ...] = (
        lambda b: b.bytes, lambda b: b.bytes * (b.end - b.start + 1),
        lambda b: b.end - b.start + 1)
    bound = bound_of(live)
    best, highest, order = -1, 0, list(live)
    for way in range(2 + TRIES):
        if way < len(orders):
            order = sorted(live, key=orders[way], reverse=True)
        elif best > bound + bound // 50:
            order.insert(0, order.pop(highest))
        else:
            break
        peak, highest = _placed(order)
        best = peak if best < 0 else min(best, peak)
    return max(best, 0)


def _placed(live: Iterable[Live]) -> tuple[int, int]:
    """The bytes needed when buffers are placed in this order, and which of them ends highest."""
    placed: list[tuple[int, int, Live]] = []
    peak = highest = 0
    for number, item in enumerate(live):
        size = _aligned(item.bytes)
        if size:
            offset = _best_gap(placed, item, size)
            if offset + size > peak:
                peak, highest = offset + size, number
            insort(placed, (offset, number, item), key=lambda entry: entry[:2])
    return peak, highest


def _best_gap(placed: Sequence[tuple[int, int, Live]], item: Live, size: int) -> int:
    """The smallest gap between living neighbours that holds `size`, else the end of the last."""
    free_from, best, best_size = 0, -1, 0
    for offset, _, other in placed:
        if not other.meets(item):
            continue
        gap = offset - free_from
        if gap >= size and (best < 0 or gap < best_size):
            best, best_size = free_from, gap
        free_from = max(free_from, _aligned(offset + other.bytes))
    return free_from if best < 0 else best


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def report(plan: CallPlan, size: Bytes) -> str:
    """The workspace for a short and a long input on one thread, beside the lower bound."""
    parts = []
    for tokens in (SHORT, LONG) if any(d.name == "tokens" for d in plan.dims) else (SHORT,):
        dims = {d.name: min(max(tokens if d.name == "tokens" else SHORT, d.lo), d.hi)
                for d in plan.dims}
        found = usage(plan, size, dims)
        what = f" for {tokens} token{'s' * (tokens > 1)}" if "tokens" in dims else ""
        parts.append(f"{found.peak} bytes{what} ({found.ratio:.2f} of the lower bound)")
    return ", ".join(parts)
