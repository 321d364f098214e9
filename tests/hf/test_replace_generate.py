"""Models of transformers with built layers generate the tokens that they generate without."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from replacecase import CONFIGS, MODES, STATIC, Pair, padded, pair_of, prompts, random_model
from torch import Tensor

from graphdsl.builder import BuildOptions
from graphdsl.hf.replace import replace_layers

pytestmark = pytest.mark.usefixtures("one_thread")

ALWAYS = (("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("gemma3", "sdpa"))
"""Of every run."""
CASES = [pytest.param(family, attention, id=f"{family}-{attention}",
                      marks=() if (family, attention) in ALWAYS else pytest.mark.full)
         for family in CONFIGS for attention in ("sdpa", "eager")]


@pytest.fixture(scope="module")
def made() -> dict[str, Pair]:
    """The models that were made, by family."""
    return {}


@pytest.fixture
def pair(family: str, attention: str, made: dict[str, Pair], options: BuildOptions) -> Pair:
    if family not in made:
        made[family] = pair_of(CONFIGS[family](), options)
    made[family].use(attention)
    return made[family]


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_tokens(pair: Pair) -> None:
    for name, mode in MODES.items():
        for inputs in ({"input_ids": prompts()}, padded()):
            wanted, found = pair.generate(**inputs, **mode)
            assert torch.equal(wanted, found), (name, len(inputs["input_ids"]))


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_embeddings(pair: Pair) -> None:
    given = pair.theirs.get_input_embeddings()(prompts(2)).detach()
    wanted, found = pair.generate(inputs_embeds=given)
    assert torch.equal(wanted, found)


@torch.no_grad()
@pytest.mark.parametrize(("family", "attention"), CASES)
def test_hidden_states(pair: Pair) -> None:
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


def test_the_example_of_the_page(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "replace.md"
    (code,) = re.findall("```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.setenv("GRAPHDSL_CACHE", str(options.cache))
    exec(compile(code, str(page), "exec"), {})


@torch.no_grad()
@pytest.mark.full
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral"])
def test_bf16_is_as_near_to_f32_as_transformers_is(family: str, attention: str,
                                                   options: BuildOptions) -> None:
    exact = random_model(CONFIGS[family]())
    theirs = copy.deepcopy(exact).bfloat16()
    ours = copy.deepcopy(theirs)
    replace_layers(ours, replace(options, dtype="bf16"))
    errors = []
    for model in (theirs, ours):
        exact.set_attn_implementation(attention)
        model.set_attn_implementation(attention)
        given = padded()
        real = given["attention_mask"].bool()
        wanted = exact(**given).logits[real]
        errors.append((model(**given).logits[real].float() - wanted).pow(2).mean().sqrt())
    assert errors[1] <= 1.5 * errors[0]
    for mode in ({}, STATIC):
        assert ours.generate(**padded(), **mode, max_new_tokens=9, do_sample=False).shape == (3, 16)
