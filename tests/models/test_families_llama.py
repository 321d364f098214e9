"""Llama and Mistral from random Hugging Face folders, against transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from familycase import SEEDS, Draw, check_cpu, check_seed
from transformers import LlamaConfig, MistralConfig

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.families.llama import read_mistral
from graphdsl.hf.fields import Fields

SCALINGS = ({"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 32})


def sizes(dice: random.Random) -> dict[str, Any]:
    """Every kind of head sharing, head width, head tying and rope scaling comes up."""
    kv_heads = dice.choice([1, 2, 3])
    heads = kv_heads * dice.choice([1, 2, 3])
    # transformers refuses a hidden size that is not a multiple of the heads.
    return dict(
        vocab_size=dice.randint(20, 70), hidden_size=heads * dice.randint(3, 9),
        num_hidden_layers=dice.randint(1, 3), num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=2 * dice.randint(2, 12),
        intermediate_size=dice.randint(7, 60), rms_norm_eps=dice.choice([1e-5, 1e-2]),
        rope_parameters={**dice.choice(SCALINGS), "rope_theta": dice.choice([1e4, 5e5])},
        tie_word_embeddings=dice.random() < 0.5, max_position_embeddings=64)


def llama(dice: random.Random) -> LlamaConfig:
    return LlamaConfig(**sizes(dice))


def mistral(dice: random.Random) -> MistralConfig:
    """A window, mostly, that is shorter than the batches of the harness."""
    return MistralConfig(**sizes(dice), sliding_window=dice.choice([None, 1, 3, 6]))


@pytest.mark.parametrize("draw", [llama, mistral])
@pytest.mark.parametrize("seed", SEEDS)
def test_reference_and_passes(draw: Draw, seed: int, tmp_path: Path) -> None:
    check_seed(draw, seed, tmp_path)


@pytest.mark.fuzz
@pytest.mark.parametrize("draw", [llama, mistral])
def test_cpu(draw: Draw, cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    check_cpu(draw, cpu_seeds, tmp_path, options)


PLAIN = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
         "intermediate_size": 8}


def mistral_of(**changes: Any) -> Any:
    return read_mistral(Fields(Path("config.json"), {**PLAIN, **changes})).config


def test_the_window_of_mistral() -> None:
    """The first Mistral had one, later ones say null."""
    assert mistral_of().window == 4096
    assert mistral_of(sliding_window=None).window == 0
    assert mistral_of(sliding_window=3).window == 3


@pytest.mark.parametrize(("change", "found"), [
    ({"sliding_window": 0}, "'sliding_window' is 0; wanted: at least 1, or null"),
    ({"sliding_window": -1}, "'sliding_window' is -1; wanted: at least 1, or null"),
    ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'; supported: 'silu'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling of type 'yarn'")])
def test_mistral_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(GraphError) as caught:
        mistral_of(**change)
    assert caught.value.message.startswith("config.json: ")
    assert found in caught.value.message
