"""Qwen2 and Qwen3 from random Hugging Face folders, against transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from familycase import SEEDS, Draw, check_cpu, check_seed
from test_families_llama import sizes
from transformers import Qwen2Config, Qwen3Config

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.families.qwen import read_qwen2, read_qwen3
from graphdsl.hf.fields import Fields


def windows(dice: random.Random, layers: int) -> dict[str, Any]:
    """No window, one from some layer on, or layers of either kind in any order."""
    kind = dice.choice(["none", "from", "listed"])
    if kind == "none":
        return {"use_sliding_window": False}
    made: dict[str, Any] = {"use_sliding_window": True, "sliding_window": dice.choice([1, 3, 6])}
    if kind == "from":
        return {**made, "max_window_layers": dice.randint(0, layers)}
    kinds = ["full_attention", "sliding_attention"]
    return {**made, "layer_types": [dice.choice(kinds) for _ in range(layers)]}


def qwen2(dice: random.Random) -> Qwen2Config:
    """Heads share the hidden size, as in all models of this family."""
    drawn = sizes(dice)
    heads, width = drawn["num_attention_heads"], 2 * dice.randint(2, 6)
    del drawn["head_dim"]
    drawn["hidden_size"] = heads * width
    return Qwen2Config(**drawn, **windows(dice, drawn["num_hidden_layers"]))


def qwen3(dice: random.Random) -> Qwen3Config:
    drawn = sizes(dice)
    return Qwen3Config(**drawn, **windows(dice, drawn["num_hidden_layers"]))


@pytest.mark.parametrize("draw", [qwen2, qwen3])
@pytest.mark.parametrize("seed", SEEDS)
def test_reference_and_passes(draw: Draw, seed: int, tmp_path: Path) -> None:
    check_seed(draw, seed, tmp_path)


@pytest.mark.fuzz
@pytest.mark.parametrize("draw", [qwen2, qwen3])
def test_cpu(draw: Draw, cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    check_cpu(draw, cpu_seeds, tmp_path, options)


PLAIN = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 8, "use_sliding_window": True,
         "sliding_window": 4, "max_window_layers": 3}


def config_of(**changes: Any) -> Any:
    return read_qwen3(Fields(Path("config.json"), {**PLAIN, **changes})).config


def test_which_layers_slide() -> None:
    listed = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert (config_of().window, config_of().sliding) == (4, (3,))
    assert config_of(layer_types=listed).sliding == (0, 3)
    for none in (config_of(use_sliding_window=False), config_of(sliding_window=None),
                 config_of(max_window_layers=4)):
        assert (none.window, none.sliding) == (0, ())


def test_what_the_file_does_not_say() -> None:
    assert config_of().head_dim == 128
    assert read_qwen2(Fields(Path("config.json"), PLAIN)).config.head_dim == 2
    assert not config_of().tied


@pytest.mark.parametrize(("change", "found"), [
    ({"attention_bias": True}, "'attention_bias' is true; supported: Qwen3 models without biases"),
    ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'; supported: 'silu'"),
    ({"sliding_window": 0}, "'sliding_window' is 0; wanted: at least 1, or null"),
    ({"layer_types": "full_attention"}, "'layer_types' is 'full_attention'; wanted: a list of te"),
    ({"layer_types": ["full_attention"]}, "'layer_types' has 1 entries; wanted: 4"),
    ({"layer_types": ["linear_attention"] * 4}, "a layer type is 'linear_attention'; wanted: slid"),
    ({"layer_types": ["sliding_attention"] * 4, "sliding_window": None}, "has sliding layers; wan"),
    ({"layer_types": ["sliding_attention"] * 4, "use_sliding_window": False}, "has sliding layers"),
    ({"num_hidden_layers": 10 ** 9}, "layers is 1000000000; wanted: at most"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling of type 'yarn'"),
    ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is not 1")])
def test_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(GraphError) as caught:
        config_of(**change)
    assert caught.value.message.startswith("config.json: ")
    assert found in caught.value.message
