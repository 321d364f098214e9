"""The host's side of static graphs: padded inputs, masks, the move of a cache, and the loop.

S is the length that the graphs were made for. Masks are added to scores: 0 where a key is seen,
CLOSED where it is not. No row of a mask is closed as a whole, for such a row has no softmax; rows
of a cache that hold no token are 0, for 0 times what is no number is no number either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CLOSED = -1e4
"""What a mask adds to the score of a key that is not seen: f16 has it too."""

Part = Callable[..., Any]
"""`block` or `block_cache`: tensors in the order of its inputs to one tensor or several."""


def pad_ids(ids: Sequence[int], length: int, padding: int = 0) -> Tensor:
    """The ids of a prompt, then padding: i32 [1, S]. Raises GraphError for a prompt that is empty
    or longer than S."""
    _check_prompt(len(ids), length)
    return torch.tensor([[*ids, *[padding] * (length - len(ids))]], dtype=torch.int32)


def position_ids(tokens: int, length: int) -> Tensor:
    """0 to tokens - 1, then 0 for padding, whose rows nobody reads: i32 [1, S]. Raises GraphError
    as `pad_ids` does."""
    _check_prompt(tokens, length)
    return torch.tensor([[*range(tokens), *[0] * (length - tokens)]], dtype=torch.int32)


def position_id(past: int) -> Tensor:
    """That of the token after `past` others: i32 [1, 1]."""
    return torch.tensor([[past]], dtype=torch.int32)


def prefill_mask(tokens: int, length: int, dtype: torch.dtype | None = None) -> Tensor:
    """For `block`, [1, 1, S, S], f32 unless given: a token sees itself and those before it, a row
    of padding itself alone. Raises GraphError as `pad_ids` does."""
    _check_prompt(tokens, length)
    at = torch.arange(length)
    seen = (at[None, :] <= at[:, None]) & (at[:, None] < tokens) | torch.eye(length).bool()
    return _mask(seen, dtype)[None, None]


def decode_mask(past: int, length: int, dtype: torch.dtype | None = None, *,
                cache: str = "shift") -> Tensor:
    """For `block_cache`, [1, 1, 1, S + 1], f32 unless given, of the token after `past` others.

    The last past + 1 columns are open where the cache shifts; the first `past` and the last where
    the caller appends. Raises GraphError for a full cache: past >= S.
    """
    check_room(past, length)
    at = torch.arange(length + 1)
    seen = at >= length - past if cache == "shift" else (at < past) | (at == length)
    return _mask(seen, dtype)[None, None, None]


def move_to_end(rows: Tensor, tokens: int) -> Tensor:
    """What `block` gives of a cache, [1, S, kv_heads, head_dim], as `block_cache` takes it where
    the cache shifts: the first `tokens` rows moved to the end, all others 0. Raises GraphError for
    more tokens than rows."""
    _check_prompt(tokens, rows.shape[1])
    moved = torch.zeros_like(rows)
    moved[:, rows.shape[1] - tokens:] = rows[:, :tokens]
    return moved


def keep_first(rows: Tensor, tokens: int) -> Tensor:
    """What `block` gives of a cache as `block_cache` takes it where the caller appends: the first
    `tokens` rows, all others 0. Raises GraphError for more tokens than rows."""
    _check_prompt(tokens, rows.shape[1])
    kept = torch.zeros_like(rows)
    kept[:, :tokens] = rows[:, :tokens]
    return kept


def place(cache: Tensor, row: Tensor, past: int) -> None:
    """Writes the row [1, 1, kv_heads, head_dim] that `block_cache` gives where the caller appends
    behind the `past` rows of the cache. Raises GraphError for a full cache."""
    check_room(past, cache.shape[1])
    cache[:, past] = row[:, 0]


def check_room(past: int, length: int) -> None:
    """Raises GraphError where a cache of `length` tokens is full: one more would push the first
    one out."""
    if past >= length:
        raise GraphError(f"the static cache is full: it holds {past} of {length} tokens",
                         hint="build for a larger length, or ask for fewer new tokens")


def _check_prompt(tokens: int, length: int) -> None:
    if not 1 <= tokens <= length:
        raise GraphError(f"the prompt has {tokens} tokens; the static length is {length}",
                         hint="build for a larger length" if tokens else "give at least one token")


def _mask(seen: Tensor, dtype: torch.dtype | None) -> Tensor:
    made = torch.full(seen.shape, CLOSED, dtype=dtype or torch.float32)
    return made.masked_fill(seen, 0.0)


@dataclass
class StaticSession:
    """A run of the two parts of a Model over one sequence: it owns the caches.

    The parts take ids, positions, rows and a mask, `block_cache` the caches too, and give logits,
    then the caches. `dtype` is that of the masks, `cache` what `graphdsl.static` was given.
    """

    block: Part
    block_cache: Part
    length: int
    dtype: torch.dtype
    cache: str = "shift"
    past: int = 0
    caches: list[Tensor] = field(default_factory=list)

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Logits f32 [1, vocab] after the last of ids [1, tokens]; positions, i32 of the same
        shape, are -1 for padding and else those that follow. The first step is the prompt's.

        Raises GraphError, with nothing changed, for a prompt longer than S, a full cache, and
        more than one sequence.
        """
        if ids.shape[0] != 1:
            raise GraphError(f"{ids.shape[0]} sequences given; a static graph is for one",
                             hint="run them one after another")
        given = ids[positions >= 0].tolist()
        if not self.past:
            return self._prefill(given)
        check_room(self.past + len(given) - 1, self.length)
        return [self._decode(token) for token in given][-1]

    def _prefill(self, ids: list[int]) -> Tensor:
        tokens, length = len(ids), self.length
        logits, *caches = self.block(pad_ids(ids, length), position_ids(tokens, length),
                                     position_id(tokens - 1),
                                     prefill_mask(tokens, length, self.dtype))
        arranged = move_to_end if self.cache == "shift" else keep_first
        self.caches = [arranged(rows, tokens) for rows in caches]
        self.past = tokens
        last: Tensor = logits[:, 0]
        return last

    def _decode(self, token: int) -> Tensor:
        mask = decode_mask(self.past, self.length, self.dtype, cache=self.cache)
        first = position_id(0)
        logits, *rows = self.block_cache(torch.tensor([[token]], dtype=torch.int32),
                                         position_id(self.past), first, mask, *self.caches)
        if self.cache == "shift":
            self.caches = rows
        else:
            for cache, row in zip(self.caches, rows, strict=True):
                place(cache, row, self.past)
        self.past += 1
        last: Tensor = logits[:, 0]
        return last
