"""Buffers with spare rows: what is copied, and what callers see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphdsl.borders.kept import GROWTH, REORDER, WINDOW, Kept

ROW = 2 * 3 * 4 * 4
"""Bytes of a row of keys: batch 2, 3 heads, 4 numbers."""


def rows(order: str, count: int, first: int = 0) -> Tensor:
    """Row i holds i."""
    sizes = {"b": 2, "n": 3, "d": 4, "s": 1}
    tensor = torch.ones([sizes[axis] for axis in order])
    return torch.cat([tensor * i for i in range(first, first + count)] or [tensor[:0]],
                     order.index("s")) if count else torch.empty(
                         [{**sizes, "s": 0}[axis] for axis in order])


def append(kept: Kept, held: tuple[Tensor, ...], count: int, first: int,
           window: bool = False) -> tuple[Tensor, ...]:
    """The views after rows `first` and so on were written behind those held."""
    before = held[0].shape[kept.axis]
    start = kept.hold(held, count, window=window)
    for target in kept.view(start + before, count):
        target.copy_(rows(kept.order, count, first))
    return kept.view(start, before + count)


def numbers(view: Tensor, order: str) -> list[int]:
    return [int(x) for x in view.movedim(order.index("s"), 0).flatten(1)[:, 0]]


@pytest.mark.parametrize("order", ["bnsd", "bsnd", "sbnd"])
def test_rows_go_on_without_copies_until_the_buffer_is_full(order: str) -> None:
    kept = Kept(order, reserve=4)
    held: tuple[Tensor, ...] = (rows(order, 0), rows(order, 0))
    for i in range(5):
        held = append(kept, held, 1, i)
    assert (kept.capacity, kept.copied) == (5, {})
    held = append(kept, held, 1, 5)
    assert (kept.capacity, kept.copied) == (10, {GROWTH: 2 * 5 * ROW})
    assert [numbers(view, order) for view in held] == [list(range(6))] * 2
    assert held[0].is_contiguous() == (order == "sbnd")


def test_shorter_views_are_known_and_written_behind() -> None:
    kept = Kept(reserve=10)
    held = append(kept, (rows("bnsd", 0),), 6, 0)
    held = append(kept, tuple(view[:, :, :-2] for view in held), 1, 9)
    assert numbers(held[0], "bnsd") == [0, 1, 2, 3, 9]
    assert not kept.copied


def test_other_tensors_are_taken_into_the_buffer() -> None:
    kept = Kept(reserve=10)
    held = append(kept, (rows("bnsd", 0),), 3, 0)
    address = kept.buffers[0].data_ptr()
    held = append(kept, tuple(view.flip(0) for view in held), 1, 7)
    assert numbers(held[0], "bnsd") == [0, 1, 2, 7]
    assert kept.buffers[0].data_ptr() == address
    assert kept.copied == {REORDER: 3 * ROW}
    more = torch.cat([held[0]] * 2)
    assert kept.hold((more,), 1) == 0
    assert kept.buffers[0].shape == (4, 3, 4 + 1 + 10, 4)


def test_views_that_do_not_begin_the_buffer_or_overlap_it_go_to_a_new_one() -> None:
    kept = Kept(reserve=10)
    held = append(kept, (rows("bnsd", 0),), 5, 0)
    old = kept.buffers[0]
    held = append(kept, tuple(view[:, :, 2:] for view in held), 1, 9)
    assert numbers(held[0], "bnsd") == [2, 3, 4, 9]
    assert kept.buffers[0] is not old
    assert numbers(old[:, :, :5], "bnsd") == [0, 1, 2, 3, 4]


def test_the_last_rows_of_a_window_go_back_to_the_front() -> None:
    kept = Kept(reserve=5)
    held: tuple[Tensor, ...] = (rows("bnsd", 0),)
    for i in range(12):
        held = append(kept, held, 1, i, window=True)
        assert numbers(held[0], "bnsd") == list(range(max(0, i - 2), i + 1))
        held = tuple(view[:, :, -2:] for view in held)
    assert kept.copied == {WINDOW: 2 * ROW}
    assert kept.capacity == 8


def test_keys_and_values_of_other_places_are_not_taken_for_views() -> None:
    kept = Kept(reserve=10)
    keys, values = append(kept, (rows("bnsd", 0), rows("bnsd", 0)), 4, 0)
    assert kept.hold((keys, values), 1) == 0
    assert not kept.copied
    kept.hold((keys[:, :, 1:], values[:, :, :3]), 1, window=True)
    assert kept.copied == {REORDER: 2 * 3 * ROW}
