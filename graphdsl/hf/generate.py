"""Generating token ids with any model that makes logits step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from graphdsl.errors import GraphError
from graphdsl.hf.sampling import Endings, Processors, Sampling, endings, logits_processors
from graphdsl.lazy import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Session(Protocol):
    """One run of a model over a batch: it owns the cache."""

    def step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """ids: i64 [batch, tokens]; positions: i32 [batch, tokens], -1 where an id is padding.
        Returns the logits after the last id of each row: f32 [batch, vocab]. They may be written
        over by the next step."""
        ...


class Vocabulary(Protocol):
    """What prompts are checked against: ids below `vocab`, at most `max_positions` of them."""

    @property
    def vocab(self) -> int: ...

    @property
    def max_positions(self) -> int: ...


class StepModel(Vocabulary, Protocol):
    """A model that generate can drive."""

    def start(self, batch: int, capacity: int) -> Session:
        """A session with an empty cache for `batch` rows of at most `capacity` positions."""
        ...


@dataclass(frozen=True)
class Step:
    """What one step brought to every row: its new id, whether that id is `fresh` (a row that ended
    earlier only gets padding), and why the row has ended: "eos", "stop string", "length", or ""
    while it goes on. The first step is the prompt's."""

    ids: tuple[int, ...]
    fresh: tuple[bool, ...]
    ended: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Speed:
    """How fast the prompt was taken in and the rest was made. The first new token belongs to the
    prompt's step; time between steps, which the caller spends, counts for neither."""

    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    decoded_tokens: int
    decode_seconds: float

    def summary(self) -> str:
        """One line for people."""
        line = f"prompt: {_rate(self.prompt_tokens, self.prompt_seconds)}"
        if self.decoded_tokens:
            line += f"; decode: {_rate(self.decoded_tokens, self.decode_seconds)}"
        return f"{line}; {self.new_tokens} new tokens"


@dataclass(frozen=True)
class Completion:
    """The new ids of every row, the eos id included, why each row ended ("eos", "stop string" or
    "length"), and the speed."""

    ids: tuple[tuple[int, ...], ...]
    reasons: tuple[str, ...]
    speed: Speed


def generate(
    model: StepModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator | None = None,
    tokenizer: Any = None,
) -> Iterator[Step]:
    """Yields the new ids step by step, until every row ended or the model has no position left.

    Tokens equal those of transformers' generate for equal logits: sampled ones if `generator` has
    the seed that torch.manual_seed was given there (None draws from torch's global generator).
    Prompts of different lengths are padded on the left. `tokenizer` is needed for stop strings.

    Raises GraphError, at once and not at the first step, for no prompt, an empty one, one that
    leaves no position, and ids that the model has not.
    """
    check_prompts(model, prompts, sampling)
    longest = max(len(prompt) for prompt in prompts)
    budget = budget_of(model, longest, sampling)
    ends = endings(sampling, longest + budget, tokenizer)
    ids, positions = _left_pad(prompts, longest, sampling.padding)
    processors = logits_processors(sampling, longest, (positions < 0).sum(1))
    if budget == 0:
        return iter(())
    session = model.start(len(prompts), longest + budget - 1)
    chooser = Chooser(processors, sampling.greedy, generator)
    return _steps(session, ids, positions, chooser, ends, sampling.padding)


def collect(prompts: Sequence[Sequence[int]], steps: Iterable[Step]) -> Completion:
    """Runs `steps`, which generate made of `prompts`, to their end and gathers each row's ids."""
    taken = list(steps)
    rows: list[list[int]] = [[] for _ in prompts]
    for step in taken:
        for row, token, fresh in zip(rows, step.ids, step.fresh, strict=True):
            if fresh:
                row.append(token)
    speed = Speed(
        prompt_tokens=sum(len(prompt) for prompt in prompts) if taken else 0,
        prompt_seconds=taken[0].seconds if taken else 0.0,
        new_tokens=sum(len(row) for row in rows),
        decoded_tokens=sum(sum(step.fresh) for step in taken[1:]),
        decode_seconds=sum(step.seconds for step in taken[1:]),
    )
    reasons = taken[-1].ended if taken else ("length",) * len(rows)
    return Completion(tuple(tuple(row) for row in rows), reasons, speed)


@dataclass
class Chooser:
    """Takes the likeliest ids, or draws them with the generator."""

    processors: Processors
    greedy: bool
    generator: torch.Generator | None
    _logits: torch.Tensor | None = None
    _scores: Any = None

    def next_ids(self, ids: NDArray[np.int64], logits: torch.Tensor) -> list[int]:
        """One for every row of ids [batch, so far] and of logits, f32 [batch, vocab]. Raises
        GraphError for NaN."""
        if self.greedy and not self.processors:
            return self._likeliest(logits)
        check_numbers(logits)
        # Processors may write into what they are given, which is the session's.
        scores = self.processors(torch.from_numpy(ids), logits.to(torch.float32, copy=True))
        if self.greedy:
            chosen = scores.argmax(-1)
        else:
            chances = torch.softmax(scores, -1)
            chosen = torch.multinomial(chances, 1, generator=self.generator).squeeze(1)
        ids_chosen: list[int] = chosen.tolist()
        return ids_chosen

    def _likeliest(self, logits: torch.Tensor) -> list[int]:
        """The same without torch, whose every operation costs as much as all of this."""
        if logits is not self._logits:  # sessions may write to the same tensor in every step
            self._logits, self._scores = logits, logits.numpy()
        best: list[int] = self._scores.argmax(-1).tolist()  # NaN counts as the largest number
        if any(math.isnan(self._scores[row, i]) for row, i in enumerate(best)):
            raise not_numbers()
        return best


def _steps(
    session: Session,
    ids: torch.Tensor,
    positions: torch.Tensor,
    chooser: Chooser,
    ends: Endings,
    padding: int,
) -> Iterator[Step]:
    """ids: i64 [batch, longest]; positions: i32 of the same shape."""
    batch, count = ids.shape
    texts = np.full((batch, ends.length), padding)
    texts[:, :count] = ids
    # The tensors of all steps but the first, and the same memory as arrays: a step leaves nothing
    # of Python's in the processor's caches, and then an operation of torch takes 50 us and more.
    next_ids, next_positions = ids[:, -1:].clone(), positions[:, -1:].clone()
    tokens, places = next_ids.numpy(), next_positions.numpy()
    ended = ("",) * batch
    # To enter it costs as much, so who takes the steps may have done so for all of them.
    ungraded = torch.inference_mode() if torch.is_grad_enabled() else nullcontext()
    while not all(ended):
        begin = time.perf_counter()
        with ungraded:
            chosen = chooser.next_ids(texts[:, :count], session.step(ids, positions))
        fresh = tuple(not reason for reason in ended)
        chosen = [token if new else padding for token, new in zip(chosen, fresh, strict=True)]
        texts[:, count] = tokens[:, 0] = chosen
        places += 1
        count += 1
        ids, positions = next_ids, next_positions
        now = ends.of(texts[:, :count])
        ended = tuple(known or reason for known, reason in zip(ended, now, strict=True))
        seconds = time.perf_counter() - begin
        yield Step(tuple(chosen), fresh, ended, seconds)


def check_numbers(logits: torch.Tensor) -> None:
    """Raises GraphError for NaN."""
    if torch.isnan(logits).any():
        raise not_numbers()


def not_numbers() -> GraphError:
    """What is raised for logits that hold NaN."""
    return GraphError(
        "the model's logits are not numbers (NaN)",
        hint="the weights may be damaged, or too large for the dtype: try --dtype f32",
    )


def budget_of(model: Vocabulary, longest: int, sampling: Sampling) -> int:
    """How many new tokens a prompt of this length may get. The last one is never given back to the
    model, so it needs no position."""
    return min(sampling.max_new_tokens, model.max_positions - longest + 1)


def check_prompts(model: Vocabulary, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Raises GraphError for no prompt, an empty one, one that leaves no position, and ids that the
    model has not."""
    if not prompts:
        raise GraphError("no prompt was given; wanted: at least one")
    sampling.check_ids(model.vocab)
    for prompt in prompts:
        if not prompt:
            raise GraphError("the prompt is empty; wanted: at least one token")
        if len(prompt) > model.max_positions:
            raise GraphError(
                f"the prompt has {len(prompt)} tokens; the model takes at most"
                f" {model.max_positions}"
            )
        outside = next((i for i in prompt if not 0 <= i < model.vocab), None)
        if outside is not None:
            raise GraphError(f"token id {outside} in the prompt; wanted: 0 to {model.vocab - 1}")


def _left_pad(
    prompts: Sequence[Sequence[int]], longest: int, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids: i64 [batch, longest]; positions: i32 of the same shape, -1 on the left where padded."""
    missing = [longest - len(prompt) for prompt in prompts]
    ids = [[padding] * gap + list(row) for gap, row in zip(missing, prompts, strict=True)]
    positions = [[-1] * gap + list(range(longest - gap)) for gap in missing]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(positions, dtype=torch.int32)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens} tokens at {tokens / max(seconds, 1e-9):.1f} tokens/s"
