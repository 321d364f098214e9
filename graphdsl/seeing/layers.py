"""A layered placement of boxes: every box below those that it reads, lines with few crossings.

The steps are those of Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical
system structures" (1981): ranks, an order in every rank by barycentres, then positions.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Edge = tuple[int, int]
Point = tuple[float, float]

GAP, RANK_GAP, BEND = 18.0, 30.0, 10.0
"""Pixels between boxes of a rank, between ranks, and the width that a passing line takes."""
SWEEPS = 6


@dataclass(frozen=True)
class Placement:
    """The middle of every box's upper edge, the points of every line, and the whole's size."""

    tops: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


@dataclass
class _Layered:
    """Boxes and, for lines that pass a rank, bends, by rank. `above` and `below` are neighbours."""

    sizes: list[Point]
    ranks: list[int]
    count: int
    paths: list[list[int]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    above: list[list[int]] = field(default_factory=list)
    below: list[list[int]] = field(default_factory=list)

    def is_bend(self, box: int) -> bool:
        return box >= self.count


def place(sizes: Sequence[Point], edges: Sequence[Edge]) -> Placement:
    """Places boxes of `sizes` (width, height). An edge leads to a box of a higher number."""
    if not sizes:
        return Placement((), (), 0.0, 0.0)
    layered = _layered(sizes, edges)
    _order(layered)
    middles = _middles(layered)
    return _placement(layered, middles)


def ranks_of(count: int, edges: Sequence[Edge]) -> list[int]:
    """The rank of every box: below all that it reads, and close to its readers unless that draws
    out more lines than it shortens."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        assert source < target, "boxes are numbered in the order of the edges"
        above[target].append(source)
        below[source].append(target)
    ranks = [0] * count
    for box in range(count):
        ranks[box] = max((ranks[b] + 1 for b in above[box]), default=0)
    for box in reversed(range(count)):
        if below[box] and len(above[box]) <= len(below[box]):
            ranks[box] = min(ranks[b] for b in below[box]) - 1
    return ranks


def _layered(sizes: Sequence[Point], edges: Sequence[Edge]) -> _Layered:
    found = _Layered(list(sizes), ranks_of(len(sizes), edges), len(sizes))
    for source, target in edges:
        path = [source]
        for rank in range(found.ranks[source] + 1, found.ranks[target]):
            path.append(len(found.sizes))
            found.sizes.append((BEND, 0.0))
            found.ranks.append(rank)
        found.paths.append([*path, target])
    found.rows = [[] for _ in range(max(found.ranks) + 1)]
    for box, rank in enumerate(found.ranks):
        found.rows[rank].append(box)
    found.above = [[] for _ in found.sizes]
    found.below = [[] for _ in found.sizes]
    for path in found.paths:
        for a, b in pairwise(path):
            found.below[a].append(b)
            found.above[b].append(a)
    return found


def _order(layered: _Layered) -> None:
    """Sorts every rank by the middle of its neighbours' places, down and up in turn; the order
    with the fewest crossings stays."""
    best, fewest = [list(row) for row in layered.rows], _crossings(layered)
    places = [0.0] * len(layered.sizes)
    for row in layered.rows:
        _number(row, places)
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = layered.above if downwards else layered.below
        for row in layered.rows if downwards else reversed(layered.rows):
            wanted = {box: _mean([places[b] for b in neighbours[box]], places[box])
                      for box in row}
            row.sort(key=wanted.__getitem__)
            _number(row, places)
        count = _crossings(layered)
        if count < fewest:
            best, fewest = [list(row) for row in layered.rows], count
    layered.rows = best


def _number(row: Sequence[int], places: list[float]) -> None:
    for i, box in enumerate(row):
        places[box] = i / len(row)


def _crossings(layered: _Layered) -> int:
    total = 0
    for upper, lower in pairwise(layered.rows):
        place = {box: i for i, box in enumerate(lower)}
        seen: list[int] = []
        for box in upper:
            ends = sorted(place[b] for b in layered.below[box])
            total += sum(len(seen) - bisect(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _middles(layered: _Layered) -> list[float]:
    """The horizontal middle of every box: close to its neighbours', without overlaps."""
    middles = [0.0] * len(layered.sizes)
    for row in layered.rows:
        _spread(layered, row, [0.0] * len(row), middles)
    for sweep in range(2 * SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = layered.above if downwards else layered.below
        for row in layered.rows if downwards else reversed(layered.rows):
            wanted = [_mean([middles[b] for b in neighbours[box]], middles[box]) for box in row]
            _spread(layered, row, wanted, middles)
    return middles


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _spread(layered: _Layered, row: Sequence[int], wanted: Sequence[float],
            middles: list[float]) -> None:
    """The places next to the wanted ones, in least squares, that keep the row's order and gaps:
    pool adjacent violators."""
    offsets, at = [], 0.0
    for i, box in enumerate(row):
        if i:
            at += (layered.sizes[row[i - 1]][0] + layered.sizes[box][0]) / 2 + GAP
        offsets.append(at)
    pools: list[tuple[float, float, int]] = []
    for i, box in enumerate(row):
        weight = 4.0 if layered.is_bend(box) else 1.0
        mean, members = wanted[i] - offsets[i], 1
        while pools and pools[-1][0] > mean:
            other, heavy, count = pools.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, members = weight + heavy, members + count
        pools.append((mean, weight, members))
    starts = [mean for mean, _, members in pools for _ in range(members)]
    for box, start, offset in zip(row, starts, offsets, strict=True):
        middles[box] = start + offset


def _placement(layered: _Layered, middles: Sequence[float]) -> Placement:
    left = min(m - w / 2 for m, (w, _) in zip(middles, layered.sizes, strict=True))
    middles = [m - left for m in middles]
    heights = [max(layered.sizes[box][1] for box in row) for row in layered.rows]
    starts, at = [], 0.0
    for height in heights:
        starts.append(at)
        at += height + RANK_GAP
    tops = [(middles[box], starts[layered.ranks[box]]) for box in range(len(middles))]
    routes = tuple(_route(layered, path, tops, heights) for path in layered.paths)
    width = max(m + w / 2 for m, (w, _) in zip(middles, layered.sizes, strict=True))
    return Placement(tuple(tops[: layered.count]), routes, width, at - RANK_GAP)


def _route(layered: _Layered, path: Sequence[int], tops: Sequence[Point],
           heights: Sequence[float]) -> tuple[Point, ...]:
    """From the lower edge of the first box to the upper edge of the last, straight through the
    ranks between them."""
    first, *bends, last = path
    x, y = tops[first]
    points = [(x, y + layered.sizes[first][1]), (x, y + heights[layered.ranks[first]])]
    for bend in bends:
        x, y = tops[bend]
        points += [(x, y), (x, y + heights[layered.ranks[bend]])]
    return (*points, tops[last])
