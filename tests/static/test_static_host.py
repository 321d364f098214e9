"""The host's side of static graphs: padding, masks, the move of caches, and the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from staticcase import LENGTH, MODELS, Dynamic, session_of

from graphdsl.errors import GraphError
from graphdsl.runtime.static import (
    CLOSED,
    StaticSession,
    decode_mask,
    keep_first,
    move_to_end,
    pad_ids,
    place,
    position_id,
    position_ids,
    prefill_mask,
)

X = CLOSED


def test_ids_and_positions_are_padded_at_the_end() -> None:
    assert pad_ids([7, 8, 9], 5).tolist() == [[7, 8, 9, 0, 0]]
    assert pad_ids([7], 2, padding=3).tolist() == [[7, 3]]
    assert position_ids(3, 5).tolist() == [[0, 1, 2, 0, 0]]
    assert position_id(3).tolist() == [[3]]
    assert {each.dtype for each in (pad_ids([7], 2), position_ids(1, 2),
                                    position_id(0))} == {torch.int32}


def test_the_mask_of_a_prompt() -> None:
    mask = prefill_mask(2, 4)
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].tolist() == [[0, X, X, X], [0, 0, X, X], [X, X, 0, X], [X, X, X, 0]]


def test_the_mask_of_a_token() -> None:
    assert decode_mask(2, 4).tolist() == [[[[X, X, 0, 0, 0]]]]
    assert decode_mask(2, 4, cache="append").tolist() == [[[[0, 0, X, X, 0]]]]
    assert decode_mask(0, 1).tolist() == [[[[X, 0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_are_finite_and_no_row_is_closed(dtype: torch.dtype) -> None:
    masks = [prefill_mask(n, 6, dtype) for n in range(1, 7)]
    masks += [decode_mask(n, 6, dtype, cache=c) for n in range(6) for c in ("shift", "append")]
    for mask in masks:
        assert mask.dtype == dtype
        assert bool(torch.isfinite(mask).all())
        assert bool((mask == 0).any(-1).all())


def test_caches_move_and_what_holds_no_token_is_zero() -> None:
    rows = torch.full((1, 4, 2, 3), torch.nan)
    rows[:, :2] = torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    moved, kept = move_to_end(rows, 2), keep_first(rows, 2)
    assert torch.equal(moved[:, 2:], rows[:, :2])
    assert torch.equal(kept[:, :2], rows[:, :2])
    assert not moved[:, :2].any()
    assert not kept[:, 2:].any()
    row = torch.ones(1, 1, 2, 3)
    place(kept, row, 2)
    assert torch.equal(kept[:, 2:3], row)
    assert not kept[:, 3].any()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: pad_ids([1, 2, 3], 2), "the prompt has 3 tokens; the static length is 2"),
    (lambda: position_ids(3, 2), "the prompt has 3 tokens; the static length is 2"),
    (lambda: prefill_mask(0, 2), "the prompt has 0 tokens; the static length is 2"),
    (lambda: move_to_end(torch.zeros(1, 2, 1, 1), 3), "the prompt has 3 tokens"),
    (lambda: keep_first(torch.zeros(1, 2, 1, 1), 3), "the prompt has 3 tokens"),
    (lambda: decode_mask(2, 2), "the static cache is full: it holds 2 of 2 tokens"),
    (lambda: place(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1), 2), "cache is full"),
])
def test_what_does_not_fit(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        call()


@pytest.fixture(scope="module")
def session() -> StaticSession:
    params = Dynamic.of(MODELS["glm4"]).params
    return session_of(MODELS["glm4"], params)


def steps(session: StaticSession, ids: list[int]) -> torch.Tensor:
    positions = torch.arange(session.past, session.past + len(ids), dtype=torch.int32)
    return session.step(torch.tensor([ids]), positions[None])


def fresh(session: StaticSession) -> StaticSession:
    return StaticSession(session.block, session.block_cache, LENGTH, torch.float32)


def test_a_full_cache_raises_and_changes_nothing(session: StaticSession) -> None:
    run = fresh(session)
    steps(run, list(range(LENGTH - 1)))
    steps(run, [3])
    before = [cache.clone() for cache in run.caches]
    with pytest.raises(GraphError, match="the static cache is full: it holds 8 of 8") as caught:
        steps(run, [4])
    assert "larger length" in caught.value.hint
    assert run.past == LENGTH
    assert all(map(torch.equal, run.caches, before))


def test_a_prompt_that_is_too_long_raises_and_so_do_steps_of_too_many(
        session: StaticSession) -> None:
    run = fresh(session)
    with pytest.raises(GraphError, match="the prompt has 9 tokens"):
        steps(run, list(range(LENGTH + 1)))
    steps(run, [1, 2])
    with pytest.raises(GraphError, match="is full"):
        steps(run, list(range(LENGTH - 1)))
    assert run.past == 2


def test_unused_rows_of_the_caches_are_zero(session: StaticSession) -> None:
    run = fresh(session)
    steps(run, [5, 6])
    steps(run, [7])
    for cache in run.caches:
        assert not cache[:, :LENGTH - 3].any()
        assert bool(cache[:, LENGTH - 3:].any(-1).all())


def test_several_tokens_after_the_prompt_are_steps(session: StaticSession) -> None:
    together, apart = fresh(session), fresh(session)
    steps(together, [5, 6])
    steps(apart, [5, 6])
    found = steps(together, [7, 8, 9])
    wanted = [steps(apart, [token]) for token in (7, 8, 9)]
    assert torch.equal(found, wanted[-1])


def test_padding_before_a_prompt_is_left_out(session: StaticSession) -> None:
    padded, plain = fresh(session), fresh(session)
    found = padded.step(torch.tensor([[0, 0, 5, 6]]),
                        torch.tensor([[-1, -1, 0, 1]], dtype=torch.int32))
    assert torch.equal(found, steps(plain, [5, 6]))


def test_several_sequences_are_refused(session: StaticSession) -> None:
    with pytest.raises(GraphError, match="2 sequences given; a static graph is for one"):
        fresh(session).step(torch.zeros(2, 1, dtype=torch.int64),
                            torch.zeros(2, 1, dtype=torch.int32))
