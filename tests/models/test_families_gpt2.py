"""GPT-2 from random Hugging Face folders, against transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from familycase import SEEDS, check_cpu, check_seed, drawn_trial
from transformers import GPT2Config

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.checkpoint import open_checkpoint
from graphdsl.hf.config import read_config


def gpt2(dice: random.Random) -> GPT2Config:
    """Feed-forward networks of four times the hidden size and of others; heads tied and not."""
    heads = dice.randint(1, 6)
    return GPT2Config(
        vocab_size=dice.randint(20, 70), n_positions=dice.randint(16, 40),
        n_embd=heads * dice.randint(2, 12), n_layer=dice.randint(1, 3), n_head=heads,
        n_inner=dice.choice([None, dice.randint(7, 60)]),
        layer_norm_epsilon=dice.choice([1e-5, 1e-2]), tie_word_embeddings=dice.random() < 0.7,
        activation_function=dice.choice(["gelu_new", "gelu_pytorch_tanh"]),
        bos_token_id=0, eos_token_id=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_gpt2(seed: int, tmp_path: Path) -> None:
    check_seed(gpt2, seed, tmp_path)


@pytest.mark.fuzz
def test_gpt2_cpu(cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    check_cpu(gpt2, cpu_seeds, tmp_path, options)


def test_names_without_the_prefix(tmp_path: Path) -> None:
    """The folders of the published GPT-2 were saved without the head."""
    trial = drawn_trial(lambda dice: GPT2Config(
        vocab_size=20, n_positions=16, n_embd=12, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=1), 0, tmp_path / "whole")
    trial.theirs.transformer.save_pretrained(tmp_path / "bare")
    bare = open_checkpoint(tmp_path / "bare")
    assert "wte.weight" in bare.names()
    for name, param in trial.params.items():
        assert torch.equal(bare.param(name), param)


FIELDS: dict[str, Any] = {"model_type": "gpt2", "n_embd": 12, "n_head": 2}


@pytest.mark.parametrize(("change", "message"), [
    ({"activation_function": "relu"}, "'activation_function' is 'relu'; supported: 'gelu_new'"),
    ({"scale_attn_weights": False}, "'scale_attn_weights' is false; supported: scores divided"),
    ({"scale_attn_by_inverse_layer_idx": True}, "supported: scores scaled alike in all layers"),
    ({"add_cross_attention": True}, "supported: decoders without cross-attention"),
    ({"n_head": 5}, "5 heads share 'n_embd' 12; wanted: a number of heads that divides it"),
    ({"n_head": 0}, "0 heads share"),
    ({"n_positions": 0}, "max_positions is 0; wanted: at least 1")])
def test_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FIELDS | change))
    with pytest.raises(GraphError) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in caught.value.message
    assert message in caught.value.message


def test_what_the_file_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    settings = read_config(tmp_path)
    assert (settings.vocab, settings.layers, settings.max_positions) == (50257, 12, 1024)
    assert settings.eos == (50256,)
    config = settings.family.config
    assert (config.hidden, config.ffn, config.tied) == (768, 3072, True)
