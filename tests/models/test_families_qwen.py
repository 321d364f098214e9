"""Qwen2 and Qwen3 from random Hugging Face folders, against transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from familycase import SEEDS, Draw, check_cpu, check_seed, check_variants
from test_families_llama import sizes
from transformers import Qwen2Config, Qwen3Config

from graphdsl.builder import BuildOptions


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


@pytest.mark.parametrize("draw", [qwen2, qwen3])
def test_embeddings_and_hidden_states(draw: Draw, tmp_path: Path) -> None:
    check_variants(draw, 0, tmp_path)
