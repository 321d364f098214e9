"""A model of ours and transformers' own, on the same ids: seconds of prefill and of decode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from graphdsl.hf.model import LanguageModel
from graphdsl.reference import error_of


@dataclass(frozen=True)
class Times:
    """Medians in seconds: the step that takes the whole prompt, and a step of one token."""

    prefill: float
    decode: float


def our_run(model: LanguageModel, ids: torch.Tensor, steps: int) -> tuple[float, float, Any]:
    """Seconds of the prompt's step and of one decode step, and the prompt's logits."""
    session = model.start(1, ids.shape[1] + steps)
    positions = torch.arange(ids.shape[1], dtype=torch.int32)[None]
    begin = time.perf_counter()
    logits = session.step(ids, positions).clone()
    prefill = time.perf_counter() - begin
    begin = time.perf_counter()
    for step in range(steps):
        session.step(ids[:, :1], positions[:, -1:] + 1 + step)
    return prefill, (time.perf_counter() - begin) / steps, logits


def their_run(model: Any, ids: torch.Tensor, steps: int) -> tuple[float, float, Any]:
    """The same of a causal language model of transformers."""
    begin = time.perf_counter()
    out = model(ids, logits_to_keep=1, use_cache=True)
    prefill = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(steps):
        model(ids[:, :1], past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    return prefill, (time.perf_counter() - begin) / steps, out.logits[:, -1]


def compare(model: LanguageModel, reference: Any, ids: torch.Tensor, steps: int,
            runs: int) -> tuple[Times, Times, float]:
    """Ours and theirs in turn, and the largest difference of the prompt's logits relative to
    the largest of them."""
    sides: tuple[Callable[[], tuple[float, float, Any]], ...] = (
        lambda: our_run(model, ids, steps), lambda: their_run(reference, ids, steps))
    with torch.inference_mode():
        difference = error_of(*(run()[2].float() for run in sides))
        taken: list[list[tuple[float, float]]] = [[], []]
        for _ in range(runs):
            for side, run in zip(taken, sides, strict=True):
                side.append(run()[:2])
    ours, theirs = (Times(*(statistics.median(pair[i] for pair in side) for i in (0, 1)))
                    for side in taken)
    return ours, theirs, difference
