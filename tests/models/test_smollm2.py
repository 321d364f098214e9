"""A real model, SmolLM2-135M-Instruct, against transformers with the same weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graphdsl.builder import BuildOptions
from graphdsl.errors import ToolError
from graphdsl.hf.checkpoint import Checkpoint
from graphdsl.hf.model import LanguageModel, open_model
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.sampling import Sampling
from graphdsl.lazy import torch_dtype
from graphdsl.models.llama import Llama
from graphdsl.reference import error_of
from graphdsl.runtime.operator import Operator

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

NEW = 64
TIE = 1e-4
"""Two logits this near may swap places: then the tokens after them are another text."""
LOGITS = 1e-4

STORY = ("The keeper of the lighthouse wrote down every ship that passed, its sails, its flag and "
         "the weather of the day, and on Sundays he read the list aloud to the gulls. ")
PROMPTS = {
    "question": "What is gravity?",
    "code": "def fibonacci(n):\n    \"\"\"The n-th Fibonacci number.\"\"\"\n",
    "another language": "Écris une phrase sur la mer et les bateaux.",
    "long": STORY * 30,
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    home = os.environ.get("GRAPHDSL_CACHE") or str(Path.home() / ".cache" / "graphdsl")
    options = BuildOptions(cache=Path(home), environment=dict(os.environ))
    try:
        return open_model("smollm2", options)
    except ToolError as error:
        pytest.skip(f"SmolLM2 cannot be fetched: {error}")


def theirs(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with the weights of the checkpoint."""
    settings = checkpoint.settings
    c = settings.family.config
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        intermediate_size=c.ffn, rms_norm_eps=c.eps, max_position_embeddings=settings.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": c.theta},
        tie_word_embeddings=c.tied))
    weights = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    made.tie_weights()
    return made.to(dtype).eval()


@pytest.fixture(scope="module")
def reference(model: LanguageModel) -> Any:
    return theirs(model.checkpoint)


@pytest.fixture(scope="module")
def prompts(model: LanguageModel) -> dict[str, list[int]]:
    ids = {name: encode_prompt(model.tokenizer, text) for name, text in PROMPTS.items()}
    return {"one token": [504], **ids}


def greedy(reference: Any, ids: Sequence[int]) -> list[int]:
    """The new tokens of transformers' own generate."""
    with torch.no_grad():
        out = reference.generate(torch.tensor([list(ids)]), max_new_tokens=NEW, do_sample=False,
                                 eos_token_id=None, pad_token_id=0)
    return [int(i) for i in out[0, len(ids):]]


@pytest.mark.parametrize("name", [
    "question", *(pytest.param(name, marks=pytest.mark.full)
                  for name in ("one token", "code", "another language", "long"))])
def test_greedy_tokens_equal_those_of_transformers(
        model: LanguageModel, reference: Any, prompts: dict[str, list[int]], name: str) -> None:
    ids = prompts[name]
    assert name != "long" or len(ids) > 1000
    wanted = greedy(reference, ids)
    found = list(model.generate([ids], sampling=Sampling(NEW, greedy=True)).ids[0])
    if found != wanted:
        at = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        with torch.no_grad():
            last = reference(torch.tensor([ids + wanted[:at]])).logits[0, -1]
        best = last.topk(2).values
        assert best[0] - best[1] < TIE, f"token {at} differs"


@pytest.mark.parametrize("name", [
    "one token", *(pytest.param(name, marks=pytest.mark.full if name == "long" else ())
                   for name in PROMPTS)])
def test_teacher_forced_logits(model: LanguageModel, reference: Any,
                               prompts: dict[str, list[int]], name: str) -> None:
    batch = torch.tensor([prompts[name]])
    with torch.no_grad():
        wanted = reference(batch).logits[0]
    found = model.logits(batch)[0]
    worst = max(error_of(a, b) for a, b in zip(found, wanted, strict=True))
    assert worst <= LOGITS


@pytest.mark.full
@pytest.mark.parametrize(("backend", "dtype"), [("cpu", "bf16"), ("ascend", "f16")])
def test_16_bits_agree_with_f32_as_often_as_those_of_transformers(
        model: LanguageModel, reference: Any, prompts: dict[str, list[int]], backend: str,
        dtype: str) -> None:
    options = replace(model.options, backend=backend, dtype=dtype)
    ours = LanguageModel(model.checkpoint, model.config, options)
    rounded = theirs(model.checkpoint, torch_dtype(dtype))
    agreed = {"ours": 0, "theirs": 0}
    count = 0
    for ids in prompts.values():
        # torch's 16-bit matmuls are slow on a CPU without instructions for them.
        batch = torch.tensor([ids[:160]])
        with torch.no_grad():
            exact = reference(batch).logits[0].argmax(-1)
            agreed["theirs"] += int((rounded(batch).logits[0].argmax(-1) == exact).sum())
        agreed["ours"] += int((ours.logits(batch)[0].argmax(-1) == exact).sum())
        count += batch.shape[1]
    assert agreed["ours"] >= agreed["theirs"] - 0.01 * count, (agreed, count)


def test_nothing_is_built_or_traced_between_prompts_of_any_length(
        model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = model.operator

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a prompt of another length must not trace or build")

    monkeypatch.setattr(Llama, "forward", refuse)
    monkeypatch.setattr(Operator, "__init__", refuse)
    for length in (1, 2, 17, 900):
        session = model.start(1, length)
        positions = torch.arange(length, dtype=torch.int32)[None]
        logits = session.step(torch.full((1, length), 100), positions)
        assert torch.isfinite(logits).all()
    assert model.operator is operator
