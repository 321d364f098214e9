"""The likeliest text by beam search, as transformers' generate finds it with num_beams, no early
stopping and a length penalty of 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.hf.generate import check_numbers
from graphdsl.hf.sampling import Sampling, endings, logits_processors
from graphdsl.lazy import torch
from graphdsl.serve.writers import Moves

if TYPE_CHECKING:
    from torch import Tensor

OUT = -1e9
"""Added to the score of what cannot be chosen; its sums are rounded as those of transformers."""


@dataclass(frozen=True)
class _Kept:
    """A text that has ended, or (no reason) the place for one. `score` is the mean of the log
    probabilities of its new tokens."""

    score: float = OUT
    ids: tuple[int, ...] = ()
    reason: str = ""


class Beams:
    """`width` texts side by side: each step goes on with the likeliest continuations of them all.
    Over when none of them can overtake the worst of the best `width` ended ones, or none is left.
    """

    def __init__(self, width: int, prompt: Sequence[int], sampling: Sampling, budget: int,
                 tokenizer: Any) -> None:
        self.width = width
        self.ids: tuple[int, ...] = ()
        self.reason = ""
        self._candidates = max(2, 1 + len(sampling.eos)) * width
        self._prompt = len(prompt)
        self._ends = endings(sampling, len(prompt) + budget, tokenizer)
        self._processors = logits_processors(sampling, len(prompt),
                                             torch.zeros(width, dtype=torch.int64))
        # At first all rows are the prompt, and continuations of the first one alone count.
        self._sofar = torch.tensor([list(prompt)] * width)
        self._scores = torch.tensor([0.0] + [OUT] * (width - 1))
        self._kept = [_Kept()] * width

    @staticmethod
    def check(width: int, sampling: Sampling) -> None:
        """Raises GraphError for a number of beams or a sampling that cannot be."""
        if width < 1:
            raise GraphError(f"beams is {width}; wanted: 1 or more")
        if not sampling.greedy:
            raise GraphError(f"{width} beams of sampled texts; wanted: greedy",
                             hint="beam search looks for the likeliest text: leave out what "
                                  "samples, or the beams")

    def write(self, logits: Tensor) -> Moves:
        """logits: f32 [rows, vocab], of one row at first. Raises GraphError for NaN."""
        check_numbers(logits)
        rows, vocab = logits.shape
        wide = logits if rows == self.width else logits.expand(self.width, -1)
        chances = torch.log_softmax(wide.float(), -1)
        chances = self._processors(self._sofar, chances) + self._scores[:, None]
        best = torch.topk(chances.flatten(), self._candidates)
        parents, tokens = best.indices // vocab, best.indices % vocab
        texts = torch.cat([self._sofar[parents], tokens[:, None]], 1)
        reasons = self._ends.of(texts.numpy())
        running = best.values + torch.tensor([OUT if reason else 0.0 for reason in reasons])
        order = torch.topk(running, self.width).indices
        self._keep(best.values, texts, reasons)
        self._sofar, self._scores = texts[order], running[order]
        if all(reasons) or not self._can_improve():
            self.ids, self.reason = self._kept[0].ids, self._kept[0].reason
            return []
        return list(zip((parents[order] % rows).tolist(), tokens[order].tolist(), strict=True))

    def _keep(self, scores: Tensor, texts: Tensor, reasons: Sequence[str]) -> None:
        """Takes those in that have ended, of the `width` best ones only."""
        means = (scores / float(texts.shape[1] - self._prompt)).tolist()
        ended = [_Kept(means[i], tuple(texts[i, self._prompt:].tolist()), reasons[i])
                 for i in range(self.width) if reasons[i]]
        together = [*self._kept, *ended]
        self._kept = sorted(together, key=lambda kept: -kept.score)[:self.width]

    def _can_improve(self) -> bool:
        """Whether the best running text, ended here, would be kept."""
        if not all(kept.reason for kept in self._kept):
            return True
        best = float(self._scores[0] / float(self._sofar.shape[1] - self._prompt))
        return best > self._kept[-1].score


__all__ = ["Beams"]
