"""Models of transformers with built layers generate the tokens that they generate without."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from replacecase import CONFIGS, MODES, Pair, padded, pair_of, prompts
from torch import Tensor

from graphdsl.builder import BuildOptions

ALWAYS = ("llama", "gpt2", "gemma3")
"""Built in every run; the others with -m fuzz, and with no -m at all."""
FAMILIES = [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.fuzz)
            for name in CONFIGS]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    return BuildOptions(cache=tmp_path_factory.mktemp("cache"), environment=dict(os.environ))


@pytest.fixture(scope="module")
def made() -> dict[str, Pair]:
    """The models that were made, by family."""
    return {}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are soonest done by a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(family: str, made: dict[str, Pair], options: BuildOptions) -> Pair:
    if family not in made:
        made[family] = pair_of(CONFIGS[family](), options)
    return made[family]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tokens(pair: Pair, attention: str) -> None:
    pair.use(attention)
    for name, mode in MODES.items():
        for inputs in ({"input_ids": prompts()}, padded()):
            wanted, found = pair.generate(**inputs, **mode)
            assert torch.equal(wanted, found), (name, len(inputs["input_ids"]))


def test_embeddings(pair: Pair) -> None:
    pair.use("sdpa")
    given = pair.theirs.get_input_embeddings()(prompts(2)).detach()
    wanted, found = pair.generate(inputs_embeds=given)
    assert torch.equal(wanted, found)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states(pair: Pair, attention: str) -> None:
    pair.use(attention)
    given = padded()
    real = given["attention_mask"].bool()
    positions = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
    wanted, found = (model(**given, position_ids=positions, output_hidden_states=True)
                     for model in (pair.theirs, pair.ours))
    assert len(wanted.hidden_states) == len(found.hidden_states)
    for ours, theirs in zip((*found.hidden_states, found.logits),
                            (*wanted.hidden_states, wanted.logits), strict=True):
        assert torch.isfinite(ours).all()
        assert near(ours[real], theirs[real])


def near(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())
