"""What a folder of every family is good for: graphdsl generate gives the tokens of transformers'
generate; embeddings go in and hidden states come out; bf16 rounds as it does there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from familycase import (
    BATCHES,
    Draw,
    Trial,
    check_variants,
    drawn_trial,
    on_the_cpu,
    one_thread,
    random_model,
    wanted,
)
from test_families_gemma import gemma
from test_families_glm import glm, glm4
from test_families_gpt2 import gpt2
from test_families_llama import llama, mistral
from test_families_mixtral import mixtral
from test_families_qwen import qwen2, qwen3

from graphdsl.builder import BuildOptions
from graphdsl.cli import main
from graphdsl.hf.families import READERS
from graphdsl.hf.model import open_model
from graphdsl.hf.sampling import Sampling
from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.reference import error_of

NEW = 64
PROMPTS = ([3, 9, 17, 2, 11, 5, 8], [12])
DRAWS: dict[str, Draw] = {
    "llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "gemma3_text": gemma,
    "mixtral": mixtral, "gpt2": gpt2, "glm": glm, "glm4": glm4}
SEED = 9
"""None of these models says the same token for ever."""


@one_thread()
def written(draw: Draw, folder: Path) -> Any:
    """A model with random weights, written to the folder."""
    config = draw(random.Random(SEED))
    config.max_position_embeddings = NEW + 16
    config.eos_token_id = 1
    model = random_model(config, SEED)
    model.save_pretrained(folder)
    return model


@one_thread()
@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    """The new tokens of transformers' own generate, without its cache, which keeps everything for a
    window of 1."""
    out = model.generate(torch.tensor([list(prompt)]), max_new_tokens=NEW, min_new_tokens=NEW,
                         do_sample=False, pad_token_id=0, use_cache=False)
    return [int(i) for i in out[0, len(prompt):]]


def test_every_family_is_here() -> None:
    assert READERS.keys() - DRAWS.keys() == {"chatglm"}, "transformers has no ChatGLM2"


@pytest.mark.parametrize("name", DRAWS)
def test_greedy_tokens(name: str, tmp_path: Path, options: BuildOptions,
                       monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    theirs = written(DRAWS[name], tmp_path)
    expected = [greedy(theirs, prompt) for prompt in PROMPTS]
    assert len(set(expected[0])) > 4
    monkeypatch.setenv("GRAPHDSL_CACHE", str(options.cache))
    capfd.readouterr()
    code = main(["generate", str(tmp_path), "--prompt-ids", " ".join(map(str, PROMPTS[0])),
                 "--greedy", "--max-new-tokens", str(NEW), "--min-new-tokens", str(NEW),
                 "--dtype", "f32", "--ids"])
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert [int(i) for i in printed.out.splitlines()[-1].split()] == expected[0]

    together = open_model(tmp_path, options).generate(
        PROMPTS, sampling=Sampling(NEW, min_new_tokens=NEW, greedy=True, eos=(1,)))
    assert [list(row) for row in together.ids] == expected


@pytest.mark.parametrize("name", DRAWS)
def test_embeddings_and_hidden_states(name: str, tmp_path: Path) -> None:
    check_variants(DRAWS[name], SEED, tmp_path)


@pytest.mark.full
def test_bf16(tmp_path: Path, options: BuildOptions) -> None:
    """Rounding costs all families together, in one library, what it costs transformers."""
    trials = [drawn_trial(draw, SEED, tmp_path / name) for name, draw in DRAWS.items()]
    machine = on_the_cpu([replace(t, graph=in_bf16(t)) for t in trials],
                         replace(options, dtype="bf16"))
    for trial, found in zip(trials, machine(trials, BATCHES[0]), strict=True):
        exact = wanted(trial, BATCHES[0])
        trial.theirs.to(torch.bfloat16)
        theirs = error_of(wanted(trial, BATCHES[0]), exact)
        assert error_of(found, exact) <= 1.5 * theirs + 0.01, (trial.checkpoint.settings, theirs)


def in_bf16(trial: Trial) -> Graph:
    family = trial.checkpoint.settings.family
    return trace(family.model(family.config), "bf16")
