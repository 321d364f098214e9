"""Beam search gives the ids that transformers' generate gives with num_beams."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model

from graphdsl.errors import GraphError
from graphdsl.hf.sampling import Sampling
from graphdsl.serve.engine import Engine

PROMPTS = [[5, 17, 31, 8], [44], [5, 17, 31, 8, 90, 90, 12, 3, 3]]
MANY = tuple(range(0, 99, 7))


@dataclass
class TokenPool:
    """Blocks of tokens, and logits by transformers of those that a row's blocks hold."""

    model: Any
    blocks: int
    size: int = 4
    memory: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = [[0] * self.size for _ in range(self.blocks)]

    def step(self, ids: torch.Tensor, positions: torch.Tensor,
             tables: Sequence[Sequence[int]]) -> torch.Tensor:
        rows = []
        for row, places, table in zip(ids.tolist(), positions.tolist(), tables, strict=True):
            for p, token in zip(places, row, strict=True):
                if p >= 0:
                    self.memory[table[p // self.size]][p % self.size] = token
            rows.append([self.memory[table[p // self.size]][p % self.size]
                         for p in range(places[-1] + 1)])
        return torch.stack([self.model(torch.tensor([row])).logits[0, -1] for row in rows])

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        for source, target in copies:
            self.memory[target] = list(self.memory[source])


@dataclass(frozen=True)
class TokenModel:
    """A PagedModel by transformers."""

    model: Any
    vocab: int = 99
    max_positions: int = 64

    def pool(self, blocks: int) -> TokenPool:
        return TokenPool(self.model, blocks)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def theirs(model: Any, prompt: list[int], beams: int, sampling: Sampling,
           tokenizer: Any = None) -> list[int]:
    extra: dict[str, Any] = {}
    if sampling.bad_words:
        extra["bad_words_ids"] = [list(word) for word in sampling.bad_words]
    if sampling.stop_strings:
        extra |= {"stop_strings": list(sampling.stop_strings), "tokenizer": tokenizer}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = model.generate(
            torch.tensor([prompt]), num_beams=beams, do_sample=False, early_stopping=False,
            length_penalty=1.0, max_new_tokens=sampling.max_new_tokens, pad_token_id=0,
            min_new_tokens=sampling.min_new_tokens, eos_token_id=list(sampling.eos) or None,
            repetition_penalty=sampling.repetition_penalty, **extra)
    return [int(i) for i in out[0, len(prompt):]]


OPTIONS = {
    "plain": Sampling(12, greedy=True),
    "eos": Sampling(20, greedy=True, eos=MANY),
    "one eos": Sampling(20, greedy=True, eos=(90,)),
    "least": Sampling(20, greedy=True, eos=MANY, min_new_tokens=5),
    "penalty": Sampling(12, greedy=True, eos=MANY, repetition_penalty=1.7),
    "bad words": Sampling(12, greedy=True, bad_words=((3,), (5, 7))),
    "one": Sampling(1, greedy=True),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("beams", [
    3, *(pytest.param(beams, marks=pytest.mark.full) for beams in (2, 5))])
def test_equal_to_transformers(model: Any, name: str, beams: int, one_thread: None) -> None:
    engine = Engine(TokenModel(model), 60, chunk=5)
    requests = [engine.add(prompt, OPTIONS[name], beams=beams) for prompt in PROMPTS]
    list(engine.run())
    for request, prompt in zip(requests, PROMPTS, strict=True):
        assert list(request.ids) == theirs(model, prompt, beams, OPTIONS[name])
    assert engine.blocks.free == 60


def test_stop_strings(tokenizer: Any, one_thread: None) -> None:
    wide = tiny_model(vocab_size=len(tokenizer))
    sampling = Sampling(12, greedy=True, stop_strings=("a", "th", "1"))
    engine = Engine(TokenModel(wide, len(tokenizer)), 60, tokenizer=lambda: tokenizer)
    for prompt in PROMPTS:
        request = engine.add(prompt, sampling, beams=3)
        list(engine.run())
        assert list(request.ids) == theirs(wide, prompt, 3, sampling, tokenizer)


def test_what_beams_refuse(model: Any) -> None:
    engine = Engine(TokenModel(model), 9, max_batch=3)
    for beams, sampling, message in (
            (0, Sampling(4, greedy=True), "beams is 0; wanted: 1 or more"),
            (2, Sampling(4), "2 beams of sampled texts; wanted: greedy"),
            (4, Sampling(4, greedy=True), "4 beams, but at most 3 rows run at once"),
            (3, Sampling(20, greedy=True), "with 3 beams takes up to 16 blocks of 4 slots, but "
                                           "the pool has 9")):
        with pytest.raises(GraphError, match=message):
            engine.add(PROMPTS[0], sampling, beams=beams)
    assert not engine.busy
