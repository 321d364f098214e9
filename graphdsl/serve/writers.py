"""What becomes of a step's logits: one text, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from graphdsl.hf.generate import Chooser
from graphdsl.hf.sampling import Endings, Sampling, endings, logits_processors
from graphdsl.lazy import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Moves = list[tuple[int, int]]
"""The rows of the next step: which row of this one each follows, and its new token."""


class Writer(Protocol):
    """Turns logits into the rows of a request."""

    @property
    def width(self) -> int:
        """The most rows that it has."""
        ...

    @property
    def ids(self) -> Sequence[int]:
        """The new ids that are certain."""
        ...

    @property
    def reason(self) -> str:
        """Why it has ended: "eos", "stop string" or "length"; "" before."""
        ...

    def write(self, logits: Tensor) -> Moves:
        """Takes the logits f32 [rows, vocab] of its rows; no rows are left when it has ended.
        Raises GraphError for NaN."""
        ...


@dataclass(eq=False)
class OneText:
    """A text of one row. `sofar`: [1, tokens], prompt and new ids."""

    chooser: Chooser
    ends: Endings
    sofar: NDArray[np.int64]
    ids: list[int] = field(default_factory=list)
    reason: str = ""
    width: int = 1

    @staticmethod
    def of(prompt: Sequence[int], sampling: Sampling, budget: int, seed: int | None,
           tokenizer: Any) -> OneText:
        """The text behind a prompt. Raises GraphError for stop strings that cannot be."""
        ends = endings(sampling, len(prompt) + budget, tokenizer)
        processors = logits_processors(sampling, len(prompt), torch.zeros(1, dtype=torch.int64))
        return OneText(Chooser(processors, sampling.greedy, generator_of(seed)), ends,
                       np.array([prompt]))

    def write(self, logits: Tensor) -> Moves:
        """Chooses one id."""
        token, = self.chooser.next_ids(self.sofar, logits)
        self.sofar = np.concatenate([self.sofar, [[token]]], 1)
        self.ids.append(token)
        self.reason, = self.ends.of(self.sofar)
        return [] if self.reason else [(0, token)]

    def fork(self, seed: int | None) -> OneText:
        """The same text so far, to be written on with a generator of its own."""
        chooser = replace(self.chooser, generator=generator_of(seed))
        return replace(self, chooser=chooser, ids=[*self.ids])


def generator_of(seed: int | None) -> torch.Generator | None:
    """One with this seed; torch's global one where there is none."""
    return None if seed is None else torch.Generator().manual_seed(seed)


__all__ = ["Moves", "OneText", "Writer", "generator_of"]
