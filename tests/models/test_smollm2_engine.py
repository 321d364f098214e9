"""SmolLM2 in an engine: beams and greedy texts against transformers with the same weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from graphdsl.builder import BuildOptions
from graphdsl.errors import ToolError
from graphdsl.hf.model import LanguageModel, open_model
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.sampling import Sampling

pytest.importorskip("transformers", reason="needs the extra hf")
from test_smollm2 import theirs

NEW = 24
PROMPTS = ("What is gravity?", "Name three colours and a fruit of each.", "Hi",
           "def fibonacci(n):\n    \"\"\"The n-th Fibonacci number.\"\"\"\n",
           "Écris une phrase sur la mer et les bateaux.")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    home = os.environ.get("GRAPHDSL_CACHE") or str(Path.home() / ".cache" / "graphdsl")
    options = BuildOptions(cache=Path(home), environment=dict(os.environ))
    try:
        return open_model("smollm2", options, quantize="none")
    except ToolError as error:
        pytest.skip(f"SmolLM2 cannot be fetched: {error}")


@pytest.mark.full
def test_beams_and_greedy_texts_together(model: LanguageModel) -> None:
    reference: Any = theirs(model.checkpoint)
    prompts = [encode_prompt(model.tokenizer, text) for text in PROMPTS]
    sampling = Sampling(NEW, greedy=True, eos=model.checkpoint.settings.eos)
    engine = model.engine(200)
    beams = [engine.add(prompt, sampling, beams=3) for prompt in prompts]
    greedy = [engine.add(prompt, sampling) for prompt in prompts]
    for _ in engine.run():
        pass
    assert engine.blocks.free == 200
    for prompt, likeliest, text in zip(prompts, beams, greedy, strict=True):
        with torch.no_grad():
            out = reference.generate(
                torch.tensor([prompt]), max_new_tokens=NEW, num_beams=3, do_sample=False,
                early_stopping=False, length_penalty=1.0, eos_token_id=list(sampling.eos),
                pad_token_id=0)
        assert list(likeliest.ids) == out[0, len(prompt):].tolist()
        assert text.ids == model.paged.generate([prompt], sampling=sampling).ids[0]
