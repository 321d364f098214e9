"""Mixtral from random Hugging Face folders, against transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from familycase import SEEDS, check_cpu, check_seed
from transformers import MixtralConfig

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.hf.families.mixtral import read
from graphdsl.hf.fields import Fields
from graphdsl.layer import trace
from graphdsl.models.mixtral import Config, Mixtral
from graphdsl.reference import run
from graphdsl.runtime.operator import Operator


def mixtral(dice: random.Random) -> MixtralConfig:
    """From one expert to more than there are tokens, of which one or all may be chosen."""
    kv_heads = dice.choice([1, 2])
    heads = kv_heads * dice.choice([1, 2, 3])
    experts = dice.choice([1, 2, 5, 8, 40])
    return MixtralConfig(
        vocab_size=dice.randint(20, 70), hidden_size=heads * dice.randint(3, 9),
        num_hidden_layers=dice.randint(1, 2), num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=2 * dice.randint(2, 12),
        intermediate_size=dice.randint(7, 60), rms_norm_eps=dice.choice([1e-5, 1e-2]),
        sliding_window=dice.choice([None, 4]), num_local_experts=experts,
        num_experts_per_tok=min(experts, dice.choice([1, 2, 2, 5])),
        rope_parameters={"rope_type": "default", "rope_theta": dice.choice([1e4, 1e6])},
        tie_word_embeddings=dice.random() < 0.3, max_position_embeddings=64)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixtral(seed: int, tmp_path: Path) -> None:
    check_seed(mixtral, seed, tmp_path)


@pytest.mark.fuzz
def test_mixtral_cpu(cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    check_cpu(mixtral, cpu_seeds, tmp_path, options)


def test_experts_that_are_not_chosen_are_not_read(options: BuildOptions) -> None:
    config = Config(vocab=9, hidden=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=6, experts=4,
                    chosen=2)
    graph = trace(Mixtral(config))
    torch.manual_seed(0)
    params = {v.name: torch.randn(v.shape) for v in graph.params}
    given = [torch.tensor([[3]]).int(), torch.tensor([[0]]).int(), torch.tensor([[0]]).int()]
    state = {v.name: torch.zeros(1, 2, 1, 4) for v in graph.state}
    operator = Operator(build_graph(graph, options).path)

    def logits(params: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        operator.bind(params)
        return (run(graph, given, params, state)[0],
                operator(*given, state=operator.new_state(1, 2)).clone())

    before = logits(params)
    broken = []
    for expert in range(4):
        spoilt = {name: w.clone() for name, w in params.items()}
        for name in ("w_gate", "w_up", "w_down"):
            spoilt[f"layers.0.{name}"][expert] = torch.nan
        after = logits(spoilt)
        broken.append([bool(found.isnan().any()) for found in after])
        assert all(found.isnan().all() or torch.equal(found, wanted)
                   for found, wanted in zip(after, before, strict=True))
    assert sorted(broken) == [[False, False], [False, False], [True, True], [True, True]]


PLAIN = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 8, "rope_theta": 1e5}
"""In the spelling of transformers 4, with what may be missing left out."""


def config_of(values: dict[str, Any]) -> Any:
    return read(Fields(Path("config.json"), values)).config


def test_missing_fields_are_those_of_transformers() -> None:
    with pytest.raises(GraphError, match="8 kv heads"):
        config_of(PLAIN)
    config = config_of({**PLAIN, "num_key_value_heads": None, "sliding_window": None})
    assert config == Config(vocab=20, hidden=8, layers=2, heads=4, kv_heads=4, head_dim=2, ffn=8,
                            theta=1e5, window=0, experts=8, chosen=2, tied=False)
    assert config_of({**PLAIN, "num_attention_heads": 8, "head_dim": 2}).kv_heads == 8


@pytest.mark.parametrize(("change", "found"), [
    ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
    ({"sliding_window": -1}, "'sliding_window' is -1"),
    ({"num_local_experts": 0}, "'num_local_experts' is 0"),
    ({"num_local_experts": 10 ** 9}, "'num_local_experts' is 1000000000"),
    ({"num_experts_per_tok": 0}, "'num_experts_per_tok' is 0"),
    ({"num_experts_per_tok": 9}, "'num_experts_per_tok' is 9"),
])
def test_what_is_not_supported_is_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(GraphError) as caught:
        config_of({**PLAIN, "num_key_value_heads": 2, **change})
    assert caught.value.message.startswith("config.json: ")
    assert found in caught.value.message
    assert "; supported: " in caught.value.message or "; wanted: " in caught.value.message
