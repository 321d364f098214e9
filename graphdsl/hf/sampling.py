"""How the next token is chosen and when a text ends, from one record: as transformers does it, by
its own classes where there is more to it than a comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.hf.extras import need
from graphdsl.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROCESSORS = "transformers.generation.logits_process"
CRITERIA = "transformers.generation.stopping_criteria"


@dataclass(frozen=True)
class Sampling:
    """What to do with the logits of each step; names and meaning are those of transformers.

    greedy takes the most likely token; otherwise one is drawn after temperature, top_k (0: off) and
    top_p (1: off), in this order. The others hold in both cases: repetition_penalty (1: off; the
    prompt counts too), bad_words as token ids, eos ids suppressed for min_new_tokens. A text ends
    at an eos id, after a stop string (the prompt's last tokens may be part of it), or after
    max_new_tokens. `pad` fills finished rows; the first eos id stands in for it, or 0.
    """

    max_new_tokens: int = 128
    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    repetition_penalty: float = 1.0
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop_strings: tuple[str, ...] = ()
    eos: tuple[int, ...] = ()
    pad: int | None = None

    def __post_init__(self) -> None:
        _want(self.max_new_tokens >= 0, "max_new_tokens", self.max_new_tokens, "0 or more")
        _want(self.min_new_tokens >= 0, "min_new_tokens", self.min_new_tokens, "0 or more")
        _want(_positive(self.temperature), "temperature", self.temperature, "a number above 0")
        _want(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _want(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0 and at most 1")
        penalty = self.repetition_penalty
        _want(_positive(penalty), "repetition_penalty", penalty, "a number above 0")
        _want(all(self.bad_words), "bad_words", self.bad_words, "at least one token id in each")
        _want(all(self.stop_strings), "stop_strings", self.stop_strings, "no empty text")

    @property
    def padding(self) -> int:
        """The id that fills finished rows and the left of shorter prompts."""
        if self.pad is not None:
            return self.pad
        return self.eos[0] if self.eos else 0

    def check_ids(self, vocab: int) -> None:
        """Raises GraphError for an id here that the model does not have."""
        ids = [*self.eos, self.padding, *(i for word in self.bad_words for i in word)]
        for token in ids:
            _want(0 <= token < vocab, "token id", token, f"0 to {vocab - 1}")


@dataclass(frozen=True)
class Processors:
    """What changes the logits of a step before an id is chosen, in this order; false where nothing
    does."""

    each: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.each)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """ids: i64 [rows, so far]; scores: f32 [rows, vocab], which may be written to."""
        for process in self.each:
            scores = process(ids, scores)
        return scores


def logits_processors(sampling: Sampling, prompt_length: int,
                      left_padding: torch.Tensor) -> Processors:
    """Those that transformers' generate would make, in its order: its own, so that it is imported
    where there are any.

    prompt_length counts padding; left_padding: i64 [batch], how many ids of each row are padding.
    """
    asked = _asked(sampling, prompt_length, left_padding)
    return Processors(tuple(getattr(need(PROCESSORS), name)(*given) for name, *given in asked))


def _asked(sampling: Sampling, prompt_length: int,
           left_padding: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """Names of transformers' classes with what they are made of."""
    eos = torch.tensor(sampling.eos, dtype=torch.int64)
    if sampling.repetition_penalty != 1.0:
        penalty = float(sampling.repetition_penalty)
        yield "RepetitionPenaltyLogitsProcessor", penalty, left_padding
    if sampling.bad_words:
        words = [list(word) for word in sampling.bad_words]
        yield "NoBadWordsLogitsProcessor", words, eos if sampling.eos else None
    if sampling.eos and sampling.min_new_tokens > 0:
        yield "MinNewTokensLengthLogitsProcessor", prompt_length, sampling.min_new_tokens, eos
    if sampling.greedy:
        return
    if sampling.temperature != 1.0:
        yield "TemperatureLogitsWarper", float(sampling.temperature)
    if sampling.top_k:
        yield "TopKLogitsWarper", sampling.top_k
    if sampling.top_p < 1.0:
        yield "TopPLogitsWarper", float(sampling.top_p)


@dataclass(frozen=True)
class Endings:
    """When a text ends: with an id of `eos`, behind a stop string, or with `length` ids, its prompt
    and padding among them."""

    eos: frozenset[int]
    length: int
    strings: Any = None

    def of(self, texts: NDArray[np.int64]) -> tuple[str, ...]:
        """Why each row of texts [rows, ids so far] has ended: "eos", "stop string" or "length", the
        first that holds, or ""."""
        behind = "length" if texts.shape[1] >= self.length else ""
        stopped = itertools.repeat(False)
        if self.strings:
            stopped = self.strings(torch.from_numpy(texts), None).tolist()
        return tuple("eos" if last in self.eos else "stop string" if stop else behind
                     for last, stop in zip(texts[:, -1].tolist(), stopped, strict=False))


def endings(sampling: Sampling, total_length: int, tokenizer: Any) -> Endings:
    """When texts of at most so many ids end. Stop strings are found by transformers' criterion.

    Raises GraphError for stop strings without a tokenizer, or that no token can be part of.
    """
    strings = None
    if sampling.stop_strings:
        strings = _stop_strings(need(CRITERIA), sampling.stop_strings, tokenizer)
    return Endings(frozenset(sampling.eos), total_length, strings)


def _stop_strings(module: Any, strings: Sequence[str], tokenizer: Any) -> Any:
    if tokenizer is None:
        raise GraphError("stop strings need a tokenizer; none was given")
    try:
        return module.StopStringCriteria(tokenizer=tokenizer, stop_strings=list(strings))
    except ValueError as error:
        raise GraphError(
            f"no token of the vocabulary can be part of one of the stop strings {list(strings)}"
        ) from error


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _want(good: bool, name: str, found: object, wanted: str) -> None:
    if not good:
        raise GraphError(f"{name} is {found!r}; wanted: {wanted}")
