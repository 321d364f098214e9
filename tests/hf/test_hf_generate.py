"""Generation gives the ids that transformers' generate gives, for every option and batch."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hf_tiny import TorchModel, tiny_model

from graphdsl.errors import GraphError
from graphdsl.hf.generate import Completion, Speed, collect, generate
from graphdsl.hf.sampling import Sampling

ONE = [[5, 17, 31, 8]]
TWO = [[5, 17, 31, 8, 90, 90, 12], [44]]


@pytest.fixture(scope="module")
def model() -> TorchModel:
    return TorchModel(tiny_model())


def ours(
    model: Any, prompts: list[list[int]], sampling: Sampling, seed: int = 3, tokenizer: Any = None
) -> Completion:
    generator = torch.Generator().manual_seed(seed)
    steps = generate(model, prompts, sampling, generator=generator, tokenizer=tokenizer)
    return collect(prompts, steps)


def theirs(
    model: TorchModel,
    prompts: list[list[int]],
    sampling: Sampling,
    seed: int = 3,
    tokenizer: Any = None,
) -> tuple[tuple[int, ...], ...]:
    """The same by transformers; what stands behind a row's end is cut off."""
    longest = max(map(len, prompts))
    pad = sampling.padding
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    torch.manual_seed(seed)
    drawn: dict[str, Any] = {"do_sample": not sampling.greedy}
    if not sampling.greedy:
        drawn |= {"temperature": sampling.temperature, "top_k": sampling.top_k}
        drawn["top_p"] = sampling.top_p
    if sampling.bad_words:
        drawn["bad_words_ids"] = [list(word) for word in sampling.bad_words]
    if sampling.stop_strings:
        drawn |= {"stop_strings": list(sampling.stop_strings), "tokenizer": tokenizer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=list(sampling.eos) or None,
            pad_token_id=pad,
            **drawn,
        )
    return tuple(_cut(row, sampling.eos) for row in output[:, longest:].tolist())


def _cut(row: list[int], eos: tuple[int, ...]) -> tuple[int, ...]:
    end = next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
    return tuple(row[:end])


OPTIONS = {
    "greedy": Sampling(greedy=True),
    "greedy-eos": Sampling(greedy=True, eos=tuple(range(0, 99, 8))),
    "greedy-penalty": Sampling(greedy=True, repetition_penalty=1.7),
    "greedy-bad-words": Sampling(greedy=True, bad_words=((3,), (5, 7), (90, 1, 2))),
    "greedy-least": Sampling(greedy=True, eos=tuple(range(0, 99, 3)), min_new_tokens=6),
    "sampled": Sampling(),
    "sampled-eos": Sampling(eos=(4, 9, 60, 61, 62, 63), pad=0),
    "temperature": Sampling(temperature=0.3),
    "top-k": Sampling(top_k=5),
    "top-k-wide": Sampling(top_k=500),
    "top-p": Sampling(top_p=0.7),
    "all": Sampling(
        temperature=1.4,
        top_k=40,
        top_p=0.95,
        repetition_penalty=0.8,
        bad_words=((1,), (17, 31)),
        eos=(2, 11, 45),
        min_new_tokens=3,
    ),
}


@pytest.mark.parametrize("prompts", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equal_to_transformers(model: TorchModel, name: str, prompts: list[list[int]]) -> None:
    sampling = replace(OPTIONS[name], max_new_tokens=16)
    for seed in range(3):
        found = ours(model, prompts, sampling, seed)
        assert found.ids == theirs(model, prompts, sampling, seed)
        for row, reason in zip(found.ids, found.reasons, strict=True):
            ended = bool(row) and row[-1] in sampling.eos
            assert reason == ("eos" if ended else "length")
            assert ended or len(row) == 16


def test_no_generator_draws_from_torchs_own(model: TorchModel) -> None:
    sampling = Sampling(max_new_tokens=12)
    torch.manual_seed(11)
    found = collect(ONE, generate(model, ONE, sampling))
    assert found.ids == theirs(model, ONE, sampling, seed=11)


def test_seeds_differ(model: TorchModel) -> None:
    sampling = Sampling(max_new_tokens=12)
    assert ours(model, ONE, sampling, 1).ids == ours(model, ONE, sampling, 1).ids
    assert ours(model, ONE, sampling, 1).ids != ours(model, ONE, sampling, 2).ids


@pytest.mark.parametrize("prompts", [ONE, TWO], ids=["one", "two"])
def test_stop_strings(tokenizer: Any, prompts: list[list[int]]) -> None:
    model = TorchModel(tiny_model(vocab_size=len(tokenizer)))
    sampling = Sampling(max_new_tokens=40, stop_strings=("th", "e", "a", "o", "s"), temperature=0.7)
    stopped = 0
    for seed in range(4):
        found = ours(model, prompts, sampling, seed, tokenizer)
        wanted = theirs(model, prompts, sampling, seed, tokenizer)
        for row, full, reason in zip(found.ids, wanted, found.reasons, strict=True):
            assert row == full[: len(row)]
            if reason == "stop string":
                stopped += 1
                text = tokenizer.decode(row)
                assert any(stop in text for stop in sampling.stop_strings)
            else:
                assert len(row) == 40
    assert stopped
    longest = max(len(row) for row in found.ids)
    assert longest == max(map(len, wanted))


def test_steps_can_be_taken_one_by_one(model: TorchModel) -> None:
    eos = tuple(range(0, 99, 5))
    steps = list(generate(model, TWO, Sampling(max_new_tokens=20, greedy=True, eos=eos)))
    assert steps[0].fresh == (True, True)
    assert all(any(step.fresh) for step in steps)
    assert all(step.ended[-1] in ("", "eos", "length") for step in steps)
    for before, after in pairwise(steps):
        assert after.fresh == tuple(not reason for reason in before.ended)
        for token, fresh in zip(after.ids, after.fresh, strict=True):
            assert fresh or token == eos[0]
    found = collect(TWO, steps)
    assert found.speed.prompt_tokens == 8
    assert found.speed.new_tokens == sum(map(len, found.ids))
    assert found.speed.decoded_tokens == found.speed.new_tokens - 2
    assert found.speed.prompt_seconds == steps[0].seconds


def test_the_cache_is_not_larger_than_needed(model: TorchModel) -> None:
    class Spy:
        vocab, max_positions = model.vocab, model.max_positions
        asked: tuple[int, int] = (0, 0)

        def start(self, batch: int, capacity: int) -> Any:
            self.asked = (batch, capacity)
            return model.start(batch, capacity)

    spy = Spy()
    assert len(ours(spy, TWO, Sampling(max_new_tokens=5)).ids[0]) == 5
    assert spy.asked == (2, 7 + 5 - 1)


def test_generation_ends_with_the_positions(model: TorchModel) -> None:
    for length, new in [(64, 1), (60, 5)]:
        found = ours(model, [[3] * length], Sampling(max_new_tokens=100, greedy=True))
        assert (len(found.ids[0]), found.reasons) == (new, ("length",))


def test_nothing_to_make(model: TorchModel) -> None:
    found = ours(model, TWO, Sampling(max_new_tokens=0))
    assert found.ids == ((), ())
    assert found.reasons == ("length", "length")
    assert found.speed.summary() == "prompt: 0 tokens at 0.0 tokens/s; 0 new tokens"


def test_the_sessions_logits_are_left_alone() -> None:
    logits = torch.arange(10.0)[None]

    class Fixed:
        vocab, max_positions = 10, 50

        def start(self, batch: int, capacity: int) -> Any:
            return self

        def step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return logits

    sampling = Sampling(max_new_tokens=3, greedy=True, bad_words=((9,),), repetition_penalty=1.5)
    found = ours(Fixed(), [[1]], sampling)
    assert found.ids == ((8, 7, 6),)
    assert torch.equal(logits, torch.arange(10.0)[None])
    logits[0, 3] = torch.nan
    with pytest.raises(GraphError, match=r"logits are not numbers \(NaN\)"):
        ours(Fixed(), [[1]], Sampling(greedy=True))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt was given"),
        ([[]], "the prompt is empty"),
        ([[1], []], "the prompt is empty"),
        ([[1] * 65], "the prompt has 65 tokens; the model takes at most 64"),
        ([[1, 99]], "token id 99 in the prompt; wanted: 0 to 98"),
        ([[-1]], "token id -1 in the prompt; wanted: 0 to 98"),
    ],
)
def test_wrong_prompts(model: TorchModel, prompts: list[list[int]], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        generate(model, prompts, Sampling())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1; wanted: 0 or more"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"temperature": 0.0}, "temperature is 0.0; wanted: a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; wanted: 0"),
        ({"top_p": 0.0}, "top_p is 0.0; wanted: a number above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; wanted: a number above 0"),
        ({"bad_words": ((),)}, "bad_words is .*; wanted: at least one token id in each"),
        ({"bad_words": ((99,),)}, "token id is 99; wanted: 0 to 98"),
        ({"eos": (200,)}, "token id is 200; wanted: 0 to 98"),
        ({"stop_strings": ("",)}, "stop_strings is .*; wanted: no empty text"),
        ({"stop_strings": ("x",)}, "stop strings need a tokenizer; none was given"),
    ],
)
def test_wrong_sampling(model: TorchModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        generate(model, ONE, Sampling(**options))


def test_the_summary() -> None:
    speed = Speed(34, 0.1, 65, 64, 0.5)
    wanted = (
        "prompt: 34 tokens at 340.0 tokens/s; decode: 64 tokens at 128.0 tokens/s; 65 new tokens"
    )
    assert speed.summary() == wanted
