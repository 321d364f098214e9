"""Blocks, their holders and their keys."""

from __future__ import annotations

from graphdsl.serve.blocks import Blocks, Table, keys_of, missing


def filled(pool: Blocks, tokens: list[int]) -> Table:
    table = Table(pool)
    table.adopt(tokens)
    table.grow(len(table.keys) * pool.size, len(tokens))
    table.name(tokens)
    return table


def test_keys_depend_on_all_tokens_before() -> None:
    whole = list(keys_of([1, 2, 3, 4, 5], 2))
    assert len(whole) == 2
    assert list(keys_of([1, 2, 3, 4, 5, 6], 2, whole)) == list(keys_of([1, 2, 3, 4, 5, 6], 2))[2:]
    assert list(keys_of([9, 2, 3, 4], 2))[1] != whole[1]


def test_what_is_shared_is_copied_before_it_is_written() -> None:
    pool = Blocks(6, 4)
    table = filled(pool, [1, 2, 3, 4, 5])
    forks = [table.fork(), table.fork()]
    assert pool.free == 4
    tables = [table, *forks]
    assert missing(tables, 5, 6) == 2
    assert missing(tables[:1], 5, 6) == 1
    copies = [pair for each in tables for pair in each.grow(5, 6)]
    assert [source for source, _ in copies] == [1, 1]
    assert len({each.blocks[1] for each in tables}) == 3
    assert {each.blocks[0] for each in tables} == {0}
    for each in tables:
        each.clear()
    assert pool.free == 6


def test_the_last_token_is_always_computed() -> None:
    pool = Blocks(6, 2)
    filled(pool, [1, 2, 3, 4]).clear()
    table = Table(pool)
    assert table.adopt([1, 2, 3, 4]) == 2
    table.clear()
    assert table.adopt([1, 2, 3, 4, 5]) == 4


def test_free_blocks_are_found_until_they_are_given_out_the_oldest_first() -> None:
    pool = Blocks(4, 2)
    filled(pool, [1, 2, 3, 4]).clear()
    filled(pool, [5, 6, 7, 8]).clear()
    taken = Table(pool)
    taken.grow(0, 2)
    assert Table(pool).adopt([1, 2, 3, 4, 0]) == 2
    held = Table(pool)
    assert held.adopt([5, 6, 7, 8, 0]) == 4
    assert pool.free == 0
