"""ChatGLM2 from random folders, against a plain transcription of its layer."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_case import ChatGLM2, Sizes, drawn_sizes
from familycase import (
    SEEDS,
    Trial,
    after_passes,
    check,
    in_reference,
    on_the_cpu,
    opened_trial,
    randomise,
)

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.config import read_config


def trial_of(sizes: Sizes, seed: int, folder: Path) -> Trial:
    """A model with random weights, written to a folder and opened."""
    torch.manual_seed(seed)
    model = ChatGLM2(sizes)
    randomise(model)
    model.save(folder)
    return opened_trial(seed, model, folder)


@pytest.mark.parametrize("seed", SEEDS)
def test_chatglm2(seed: int, tmp_path: Path) -> None:
    trial = trial_of(drawn_sizes(random.Random(seed)), seed, tmp_path)
    check([trial], in_reference)
    check([trial], after_passes)


@pytest.mark.fuzz
def test_chatglm2_cpu(cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    trials = [trial_of(drawn_sizes(random.Random(seed)), seed, tmp_path / str(seed))
              for seed in cpu_seeds]
    check(trials, on_the_cpu(trials, options))


SMALL = Sizes(vocab=65024, hidden=8, layers=1, heads=2, groups=1, head_dim=8, ffn=12, eps=1e-5,
              qkv_bias=True)


def test_positions_that_go_slower(tmp_path: Path) -> None:
    """ChatGLM2-32k."""
    check([trial_of(replace(SMALL, slower=4.0), 0, tmp_path)], in_reference)


def settings_of(folder: Path, **change: Any) -> Any:
    (folder / "config.json").write_text(json.dumps(SMALL.fields() | change))
    return read_config(folder)


def test_what_rope_ratio_means(tmp_path: Path) -> None:
    plain = settings_of(tmp_path).family.config
    assert (plain.theta, plain.scaling) == (1e4, ())
    third = settings_of(tmp_path, rope_ratio=50, _name_or_path="THUDM/chatglm3-6b-32k")
    assert (third.family.config.theta, third.family.config.scaling) == (5e5, ())
    fourth = settings_of(tmp_path, rope_ratio=500, padded_vocab_size=151552)
    assert (fourth.family.config.theta, fourth.family.config.scaling) == (5e6, ())


def test_what_the_file_does_not_say(tmp_path: Path) -> None:
    fields = {name: SMALL.fields()[name] for name in (
        "model_type", "padded_vocab_size", "hidden_size", "num_layers", "num_attention_heads",
        "ffn_hidden_size")}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    settings = read_config(tmp_path)
    config = settings.family.config
    assert (config.kv_heads, config.head_dim, config.eps) == (1, 128, 1e-5)
    assert not config.qkv_bias
    assert settings.max_positions == 2048


@pytest.mark.parametrize(("change", "message"), [
    ({"apply_residual_connection_post_layernorm": True}, "supported: residuals from before the"),
    ({"rmsnorm": False}, "'rmsnorm' is false; supported: RMS norms"),
    ({"post_layer_norm": False}, "supported: a norm after the last layer"),
    ({"multi_query_attention": False}, "supported: heads that share keys and values in groups"),
    ({"add_bias_linear": True}, "supported: no biases but those of query_key_value"),
    ({"fp32_residual_connection": True}, "supported: residuals of the model's dtype"),
    ({"quantization_bit": 4}, "supported: weights that are not quantised"),
    ({"pre_seq_len": 128}, "'pre_seq_len' is given; supported: ChatGLM2 and later"),
    ({"position_encoding_2d": True}, "'position_encoding_2d' is given; supported: ChatGLM2"),
    ({"kv_channels": 6}, "'kv_channels' is 6; wanted: a multiple of 4"),
    ({"rope_ratio": 0}, "'rope_ratio' is 0.0; wanted: above 0"),
    ({"rope_ratio": 16}, "'rope_ratio' is 16, which means one thing in ChatGLM2 and another")])
def test_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError) as caught:
        settings_of(tmp_path, **change)
    assert str(tmp_path / "config.json") in caught.value.message
    assert message in caught.value.message
