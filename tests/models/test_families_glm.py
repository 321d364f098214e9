"""GLM-4 (glm and glm4) from random Hugging Face folders, against transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from familycase import SEEDS, check_cpu, check_seed
from transformers import Glm4Config, GlmConfig

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.config import read_config

SCALINGS = ({"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 32})


def sizes(dice: random.Random) -> dict[str, Any]:
    """Every kind of head sharing, and heads of which rope turns a quarter, a half or all."""
    kv_heads = dice.choice([1, 2, 3])
    heads = kv_heads * dice.choice([1, 2, 3])
    return dict(
        vocab_size=dice.randint(20, 70), hidden_size=heads * dice.randint(3, 9),
        num_hidden_layers=dice.randint(1, 3), num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=8 * dice.randint(1, 3),
        intermediate_size=dice.randint(7, 60), rms_norm_eps=dice.choice([1.5625e-7, 1e-2]),
        rope_parameters={**dice.choice(SCALINGS), "rope_theta": dice.choice([1e4, 5e5]),
                         "partial_rotary_factor": dice.choice([0.5, 0.5, 0.25, 1.0])},
        attention_bias=dice.random() < 0.7, tie_word_embeddings=dice.random() < 0.3,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=[1, 2])


def glm(dice: random.Random) -> GlmConfig:
    return GlmConfig(**sizes(dice))


def glm4(dice: random.Random) -> Glm4Config:
    return Glm4Config(**sizes(dice))


@pytest.mark.parametrize("seed", SEEDS)
def test_glm(seed: int, tmp_path: Path) -> None:
    check_seed(glm, seed, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_glm4(seed: int, tmp_path: Path) -> None:
    check_seed(glm4, seed, tmp_path)


@pytest.mark.fuzz
def test_glm_cpu(cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    check_cpu(glm, cpu_seeds, tmp_path, options)


@pytest.mark.fuzz
def test_glm4_cpu(cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    check_cpu(glm4, cpu_seeds, tmp_path, options)


def settings_of(fields: dict[str, Any], folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(fields))
    return read_config(folder)


def test_what_the_file_does_not_say(tmp_path: Path) -> None:
    settings = settings_of({"model_type": "glm"}, tmp_path)
    config = settings.family.config
    assert (config.rotary_dim, config.head_dim, config.kv_heads) == (64, 128, 2)
    assert config.qkv_bias
    assert not config.sandwich
    assert settings.eos == (151329, 151336, 151338)
    assert settings_of({"model_type": "glm4"}, tmp_path).family.config.sandwich


def test_the_older_spelling(tmp_path: Path) -> None:
    old = {"model_type": "glm", "rope_theta": 5e5, "partial_rotary_factor": 0.25,
           "torch_dtype": "bfloat16"}
    settings = settings_of(old, tmp_path)
    assert (settings.family.config.rotary_dim, settings.family.config.theta) == (32, 5e5)
    assert settings.dtype == "bf16"


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'; supported: 'silu'"),
    ({"head_dim": 6}, "rope turns 3 of 6 channels of a head; wanted: an even number above 0"),
    ({"partial_rotary_factor": 1.5}, "'partial_rotary_factor' is 1.5; wanted: in (0, 1]"),
    ({"num_key_value_heads": 3}, "32 heads share 3 kv heads"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling of type 'yarn'")])
def test_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError) as caught:
        settings_of({"model_type": "glm"} | change, tmp_path)
    assert str(tmp_path / "config.json") in caught.value.message
    assert message in caught.value.message
