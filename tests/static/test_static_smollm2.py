"""SmolLM2 with a fixed length of 256 against the dynamic model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from staticcase import has_dims

from graphdsl.builder import BuildOptions
from graphdsl.errors import ToolError
from graphdsl.hf.generate import collect, generate
from graphdsl.hf.model import LanguageModel, open_model
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.sampling import Sampling
from graphdsl.hf.static import StaticModel

pytestmark = pytest.mark.full
pytest.importorskip("transformers", reason="needs the extra hf")

NEW = 64
STORY = ("The keeper of the lighthouse wrote down every ship that passed, its sails, its flag and "
         "the weather of the day, and on Sundays he read the list aloud to the gulls. ")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    home = os.environ.get("GRAPHDSL_CACHE") or str(Path.home() / ".cache" / "graphdsl")
    options = BuildOptions(cache=Path(home), environment=dict(os.environ))
    try:
        return open_model("smollm2", options)
    except ToolError as error:
        pytest.skip(f"SmolLM2 cannot be fetched: {error}")


@pytest.fixture(scope="module", params=["shift", "append"])
def static(model: LanguageModel, request: pytest.FixtureRequest) -> StaticModel:
    return StaticModel(model, 256, request.param)


@pytest.mark.parametrize("tokens", [1, 17, 180])
def test_64_greedy_tokens_equal_those_of_the_dynamic_model(
        model: LanguageModel, static: StaticModel, tokens: int) -> None:
    prompt = encode_prompt(model.tokenizer, STORY * 6, raw=True)[:tokens]
    assert len(prompt) == tokens
    sampling = Sampling(NEW, greedy=True)
    found = collect([prompt], generate(static, [prompt], sampling)).ids
    assert found == model.generate([prompt], sampling=sampling).ids
    assert len(found[0]) == NEW


def test_no_size_is_symbolic(static: StaticModel) -> None:
    assert not has_dims(static.operator.manifest)
    assert not has_dims(static.step_operator.manifest)
