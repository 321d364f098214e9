"""Layered placement: nothing overlaps, lines lead down, equal graphs are placed equally."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from graphdsl.seeing.layers import Placement, Point, place, ranks_of

Edges = list[tuple[int, int]]


def drawn(seed: int, count: int) -> tuple[list[Point], Edges]:
    """Random boxes, and edges from lower to higher numbers."""
    rng = random.Random(seed)
    sizes = [(float(rng.randint(40, 200)), float(rng.choice([40, 40, 300]))) for _ in range(count)]
    edges = [(rng.randrange(max(0, box - 9), box), box)
             for box in range(1, count) for _ in range(rng.randint(0, 2))]
    return sizes, list(dict.fromkeys(edges))


def overlaps(found: Placement, sizes: list[Point]) -> list[tuple[int, int]]:
    def apart(a: int, b: int) -> bool:
        (ax, ay), (bx, by) = found.tops[a], found.tops[b]
        wide = abs(ax - bx) >= (sizes[a][0] + sizes[b][0]) / 2 - 1e-6
        return wide or ay + sizes[a][1] <= by or by + sizes[b][1] <= ay

    return [pair for pair in combinations(range(len(sizes)), 2) if not apart(*pair)]


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(seed: int) -> None:
    sizes, edges = drawn(seed, 60)
    found = place(sizes, edges)
    assert not overlaps(found, sizes)
    for (source, target), route in zip(edges, found.routes, strict=True):
        assert route[0] == (found.tops[source][0], found.tops[source][1] + sizes[source][1])
        assert route[-1] == found.tops[target]
        heights = [y for _, y in route]
        assert heights == sorted(heights)
    for (middle, top), (width, height) in zip(found.tops, sizes, strict=True):
        assert middle - width / 2 >= -1e-6
        assert middle + width / 2 <= found.width + 1e-6
        assert 0 <= top <= top + height <= found.height + 1e-6
    assert place(sizes, edges) == found


def test_a_line_passes_between_the_boxes_of_a_rank() -> None:
    sizes = [(100.0, 40.0)] * 4
    found = place(sizes, [(0, 1), (1, 2), (2, 3), (0, 3)])
    passing = found.routes[3]
    for box in (1, 2):
        middle, top = found.tops[box]
        at = [x for x, y in passing if top <= y <= top + 40]
        assert at
        assert all(abs(x - middle) > 50 for x in at)


def test_two_chains_do_not_cross() -> None:
    found = place([(50.0, 20.0)] * 6, [(0, 3), (1, 2), (2, 4), (3, 5)])
    columns = [[found.tops[box][0] for box in chain] for chain in ((0, 3, 5), (1, 2, 4))]
    assert all(len(set(column)) == 1 for column in columns)


def test_what_has_few_operands_stands_by_its_reader() -> None:
    assert ranks_of(5, [(0, 2), (2, 3), (1, 4), (3, 4)]) == [0, 2, 1, 2, 3]


def test_nothing() -> None:
    assert place([], []) == Placement((), (), 0.0, 0.0)
    assert place([(30.0, 10.0)], []) == Placement(((15.0, 0.0),), (), 30.0, 10.0)
