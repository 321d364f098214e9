"""Gemma 3 from random Hugging Face folders, against transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from familycase import SEEDS, check_cpu, check_seed
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from graphdsl.backend import find_backend
from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.families.gemma import read
from graphdsl.hf.fields import Fields
from graphdsl.ir import Value
from graphdsl.layer import Layer, Param, trace
from graphdsl.models.gemma import Config, Gemma, plus_one
from graphdsl.ops import rms_norm
from graphdsl.ops.math import rounded
from graphdsl.passes.roll import Roll
from graphdsl.reference import error_of, run
from graphdsl.source import load_source

EXAMPLE = Path(__file__).parents[2] / "examples" / "gemma_layer.py"
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def gemma(dice: random.Random) -> Gemma3TextConfig:
    """Windows that are shorter than the batches, layers of one kind alone and of both, scores that
    are scaled by something else than the width of a head."""
    kv_heads = dice.choice([1, 2])
    heads = kv_heads * dice.choice([1, 2, 3])
    layers = dice.randint(1, 3)
    scaling: dict[str, Any] = dice.choice([{"rope_type": "default"},
                                           {"rope_type": "linear", "factor": 8.0}])
    return Gemma3TextConfig(
        vocab_size=dice.randint(20, 70), hidden_size=heads * dice.randint(3, 9),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=2 * dice.randint(2, 12), intermediate_size=dice.randint(7, 60),
        rms_norm_eps=dice.choice([1e-6, 1e-2]), query_pre_attn_scalar=dice.choice([4, 24, 256]),
        sliding_window=dice.randint(2, 8), layer_types=dice.choices([LOCAL, GLOBAL], k=layers),
        final_logit_softcapping=dice.choice([None, 3.0]), tie_word_embeddings=dice.random() < 0.7,
        max_position_embeddings=64, pad_token_id=0,
        rope_parameters={LOCAL: {"rope_type": "default", "rope_theta": dice.choice([1e4, 300.0])},
                         GLOBAL: {**scaling, "rope_theta": dice.choice([1e6, 5e4])}})


@pytest.mark.parametrize("seed", SEEDS)
def test_gemma(seed: int, tmp_path: Path) -> None:
    check_seed(gemma, seed, tmp_path)


@pytest.mark.fuzz
def test_gemma_cpu(cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    check_cpu(gemma, cpu_seeds, tmp_path, options)


SMALL = Config(vocab=20, hidden=8, layers=13, heads=2, kv_heads=1, head_dim=4, ffn=8, window=4,
               global_layers=(5, 11), tied=True)


def test_five_window_layers_and_a_global_one_are_generated_once() -> None:
    rolled = Roll().run(trace(Gemma(SMALL)), find_backend("cpu").target).graph
    (node,) = [n for n in rolled.nodes if n.name == "repeat"]
    assert node.body is not None
    assert node.attr["turns"] == 2
    windows = [n.attr["window"] for n in node.body.nodes if n.name == "attention"]
    assert windows == [4, 4, 4, 4, 4, 0]


def test_embeddings_are_scaled_by_what_the_dtype_has() -> None:
    for dtype, kind in (("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)):
        for number in (1152 ** 0.5, 3072 ** 0.5, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1e-3):
            assert rounded(number, dtype) == torch.tensor(number, dtype=kind).item()
    graph = trace(Gemma(SMALL), "bf16")
    numbers = {n.attr["value"] for n in graph.nodes if n.name == "constant"}
    assert rounded(8 ** 0.5, "bf16") in numbers


class Norm(Layer):
    """One norm of Gemma 3."""

    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self) -> None:
        self.config = SMALL
        self.weight = Param(SMALL.hidden)

    def forward(self, x: Value) -> Value:
        y: Value = rms_norm(x, plus_one(self.weight), eps=SMALL.eps)
        return y


@torch.no_grad()
def test_norms_of_16_bits_are_rounded_once() -> None:
    torch.manual_seed(0)
    theirs = Gemma3RMSNorm(SMALL.hidden, SMALL.eps).bfloat16()
    theirs.weight.normal_()
    x = torch.randn(3, 50, SMALL.hidden).bfloat16()
    found = run(trace(Norm(), "bf16"), [x], {"weight": theirs.weight})[0]
    assert torch.equal(found, theirs(x))


OLD = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2,
       "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 8, "sliding_window": 4,
       "query_pre_attn_scalar": 16, "rope_theta": 1e5, "rope_local_base_freq": 500.0,
       "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 3}
"""In the spelling of transformers 4."""


def config_of(values: dict[str, Any]) -> Any:
    return read(Fields(Path("config.json"), values)).config


def test_the_spellings_of_transformers_4_and_5_say_the_same(tmp_path: Path) -> None:
    config = config_of(OLD)
    assert config.global_layers == (2, 5, 8, 11)
    assert (config.theta, config.local_theta, config.scale) == (1e5, 500.0, 0.25)
    assert dict(config.scaling) == {"rope_type": "linear", "factor": 8.0}
    Gemma3TextConfig(**OLD).save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert "rope_theta" not in new
    assert config_of(new) == config


@pytest.mark.parametrize(("change", "found"), [
    ({"attention_bias": True}, "'attention_bias' is true"),
    ({"hidden_activation": "silu"}, "'hidden_activation' is 'silu'"),
    ({"use_bidirectional_attention": True}, "'use_bidirectional_attention' is true"),
    ({"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50.0"),
    ({"final_logit_softcapping": -1.0}, "'final_logit_softcapping' is -1.0"),
    ({"query_pre_attn_scalar": 0}, "'query_pre_attn_scalar' is 0.0"),
    ({"sliding_window": 0}, "'sliding_window' is 0"),
    ({"sliding_window_pattern": 0}, "'sliding_window_pattern' is 0"),
    ({"layer_types": [LOCAL]}, "'layer_types' has 1 entries"),
    ({"layer_types": ["chunked"] * 12}, "a layer type is 'chunked'"),
    ({"num_hidden_layers": 10 ** 9}, "layers is 1000000000"),
    ({"rope_local_base_freq": -1.0}, "rope theta of sliding_attention is -1.0"),
    ({"rope_parameters": {"rope_type": "linear"}}, "'rope_parameters' has 'rope_type'"),
    ({"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}},
     "'rope_type' is 'linear'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling of type 'yarn'"),
])
def test_what_is_not_supported_is_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(GraphError) as caught:
        config_of({**OLD, **change})
    assert caught.value.message.startswith("config.json: ")
    assert found in caught.value.message
    assert "; supported: " in caught.value.message or "; wanted: " in caught.value.message


@pytest.mark.parametrize("window", ["0", "6"])
@pytest.mark.parametrize("which", [0, 1], ids=["plain torch", "transformers"])
def test_the_peers_of_the_example_agree(window: str, which: int) -> None:
    sizes = {"hidden": "48", "heads": "6", "kv_heads": "2", "head_dim": "16", "ffn": "40"}
    source = load_source(EXAMPLE, {**sizes, "window": window})
    torch.manual_seed(0)
    params = {v.name: torch.randn(v.shape) / v.shape[-1] ** 0.5 for v in source.graph.params}
    state = {name: torch.zeros(2, 16, 2, 16) for name in ("kv.k", "kv.v")}
    peer = source.peer()[which]
    peer.load(params)
    peer.reset(2, 16, torch.float32)
    past = 0
    for tokens in (5, 1, 3, 4):
        x = torch.randn(2, tokens, 48)
        positions = torch.arange(past, past + tokens, dtype=torch.int32).expand(2, tokens)
        y, *new = run(source.graph, [x, positions], params, state)
        peer.set_past(state["kv.k"][:, :past], state["kv.v"][:, :past])
        assert error_of(peer(x, positions).detach(), y) < 1e-5
        state = dict(zip(state, new, strict=True))
        past += tokens
