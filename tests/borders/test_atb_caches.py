"""Caches of operators as pasts and presents: views of rows, and tiles beside rows."""

from __future__ import annotations

import torch
from torch import Tensor

from graphdsl.borders.atb_caches import Caches, Tiles, Views, caches_for
from graphdsl.runtime.caches import tiled

BATCH, HEADS, DIM = 2, 3, 16
ROW = 2 * BATCH * HEADS * DIM * 4
"""Bytes of a row of keys and values."""


def rows(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, BATCH, HEADS, DIM, generator=generator) for _ in "kv"]


def write(caches: Caches, past: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """What an operator does: `past` has to be in its buffers, and `new` comes behind."""
    buffers, seen = caches.begin(past, len(new[0])), len(past[0])
    for buffer, old, fresh in zip(buffers, past, new, strict=True):
        if isinstance(caches, Tiles):
            assert buffer.shape[2] % 16 == 0
            assert torch.equal(buffer[:, :, :seen], tiled(old.transpose(0, 1)))
            buffer[:, :, seen:seen + len(fresh)] = tiled(fresh.transpose(0, 1))
        else:
            assert buffer.is_contiguous()
            assert torch.equal(buffer[:, :seen].transpose(0, 1), old)
            buffer[:, seen:seen + len(fresh)] = fresh.transpose(0, 1)
    return caches.end(seen, len(new[0]))


def check_session(caches: Caches) -> list[int]:
    """The bytes that were copied after each of: prompt and steps, a step back, other tensors, a
    new sequence, what comes after an old present, growth."""
    copied = []
    held = [rows(5, 0), rows(1, 1), rows(2, 2)]
    past = rows(0, 0)
    for new in held:
        past = write(caches, past, new)
    wanted = [torch.cat(parts) for parts in zip(*held, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(past, wanted, strict=True))
    copied.append(caches.copied_bytes)
    back = write(caches, [t[:6] for t in past], rows(1, 3))
    assert all(torch.equal(a[:6], b[:6]) for a, b in zip(back, wanted, strict=True))
    copied.append(caches.copied_bytes)
    turned = [t.flip(1) for t in back]
    other = write(caches, turned, rows(1, 4))
    assert all(torch.equal(a[:7], b) for a, b in zip(other, turned, strict=True))
    copied.append(caches.copied_bytes)
    kept = [t.clone() for t in other]
    write(caches, rows(0, 0), rows(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(other, kept, strict=True))
    copied.append(caches.copied_bytes)
    after = write(caches, other, rows(1, 6))
    copied.append(caches.copied_bytes)
    long = write(caches, after, rows(20, 7))
    assert all(torch.equal(a[:9], b) for a, b in zip(long, after, strict=True))
    assert len(long[0]) == 29
    copied.append(caches.copied_bytes)
    return copied


def test_presents_are_views_of_rows() -> None:
    caches = caches_for("bsnd", "", 8)
    assert isinstance(caches, Views)
    taken_in = 7 * ROW, 8 * ROW, 9 * ROW
    assert check_session(caches) == [0, 0, taken_in[0], taken_in[0], sum(taken_in[:2]),
                                     sum(taken_in)]


def test_tiles_are_copied_in_once_and_new_rows_out() -> None:
    caches = caches_for("bsnd", "nz", 8)
    counts = [8, 1, 2 * 7 + 1, 3, 2 * 8 + 1, 2 * 9 + 20]
    totals = [sum(counts[:i + 1]) * ROW for i in range(len(counts))]
    assert check_session(caches) == totals
