"""The Llama of the DSL, run by the reference, against transformers' own."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.models.llama import Config, Llama, weight_names
from graphdsl.reference import run

SCALINGS = ({"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 32})


def drawn_config(seed: int) -> Config:
    """A small model: every kind of head sharing, head tying and rope scaling comes up."""
    dice = random.Random(seed)
    kv_heads = dice.choice([1, 2, 3])
    heads = kv_heads * dice.choice([1, 2, 3])
    # transformers refuses a hidden size that is not a multiple of the heads.
    return Config(
        vocab=dice.randint(20, 70), hidden=heads * dice.randint(3, 9),
        layers=dice.randint(1, 3), heads=heads, kv_heads=kv_heads,
        head_dim=2 * dice.randint(2, 12), ffn=dice.randint(7, 60), eps=1e-5,
        theta=dice.choice([1e4, 5e5]), scaling=tuple(sorted(SCALINGS[seed % 3].items())),
        tied=seed % 2 == 0)


def peer_of(c: Config) -> LlamaForCausalLM:
    """transformers' model of these config with random weights, norms included."""
    torch.manual_seed(c.vocab)
    rope = {**dict(c.scaling), "rope_theta": c.theta}
    config = LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        intermediate_size=c.ffn, rms_norm_eps=c.eps, rope_parameters=rope,
        tie_word_embeddings=c.tied, max_position_embeddings=256, pad_token_id=0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.dim() == 1 else 0.0, 0.2)
    return model


class Stepper:
    """The reference with its state, step after step."""

    def __init__(self, config: Config, peer: LlamaForCausalLM, batch: int,
                 **changes: Any) -> None:
        self.config = replace(config, **changes)
        self.graph: Graph = trace(Llama(self.config))
        weights = peer.state_dict()
        self.params = {ours: weights[theirs] for ours, theirs in weight_names(self.config).items()}
        shape = (batch, 40, config.kv_heads, config.head_dim)
        self.state = {v.name: torch.full(shape, torch.nan) for v in self.graph.state}

    def __call__(self, ids: Tensor, positions: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        if rows is None:
            rows = torch.arange(positions.shape[1]).expand(positions.shape)
        given = [ids if ids.is_floating_point() else ids.int(), positions.int(), rows.int()]
        outputs = run(self.graph, given, self.params, self.state)
        results = outputs[: len(self.graph.results)]
        names = [v.name for v in self.graph.state]
        self.state = dict(zip(names, outputs[len(results):], strict=True))
        return results


def close(ours: Tensor, expected: Tensor) -> None:
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_logits_are_those_of_transformers(seed: int) -> None:
    config = drawn_config(seed)
    peer = peer_of(config)
    batch, tokens = 1 + seed % 3, 5 + seed
    ids = torch.randint(0, config.vocab, (batch, tokens))
    positions = torch.arange(tokens).expand(batch, tokens)
    expected = peer(ids).logits
    close(Stepper(config, peer, batch)(ids, positions)[0], expected)

    stepper, at = Stepper(config, peer, batch), 0
    for size in (3, 1, tokens - 4):
        chunk = slice(at, at + size)
        close(stepper(ids[:, chunk], positions[:, chunk])[0], expected[:, chunk])
        at += size


@pytest.mark.parametrize("seed", [0, 1, 2])
@torch.no_grad()
def test_padded_batches_need_no_mask(seed: int) -> None:
    config = drawn_config(seed)
    peer = peer_of(config)
    ids = torch.randint(0, config.vocab, (3, 7))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7, [1, 1, 1, 1, 1, 0, 0]])
    counted = mask.cumsum(1) - 1
    positions = counted.masked_fill(mask == 0, -1)
    expected = peer(ids, attention_mask=mask, position_ids=counted.clamp_min(0)).logits
    stepper = Stepper(config, peer, 3)
    ours = stepper(ids, positions)[0]
    for row, real in enumerate(mask.bool()):
        close(ours[row, real], expected[row, real])

    longer = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), 1)
    more = torch.randint(0, config.vocab, (3, 1))
    expected = peer(torch.cat((ids, more), 1), attention_mask=longer,
                    position_ids=(longer.cumsum(1) - 1).clamp_min(0)).logits
    close(stepper(more, longer.sum(1, keepdim=True) - 1)[0], expected[:, -1:])


@torch.no_grad()
def test_rows_embeddings_and_hidden_states() -> None:
    config = drawn_config(4)
    peer = peer_of(config)
    ids = torch.randint(0, config.vocab, (2, 6))
    positions = torch.arange(6).expand(2, 6)
    expected = peer(ids, output_hidden_states=True)
    stepper = Stepper(config, peer, 2, embeddings=True, hidden_states=True)
    rows = torch.tensor([[5], [2]])
    logits, *hidden = stepper(peer.model.embed_tokens(ids), positions, rows)
    close(logits[:, 0], expected.logits[torch.arange(2), rows[:, 0]])
    assert len(hidden) == config.layers + 1
    # The last hidden state of transformers comes after the final norm.
    for ours, theirs in zip(hidden[:-1], expected.hidden_states, strict=False):
        close(ours, theirs)
    close(peer.model.norm(hidden[-1]), expected.hidden_states[-1])


def test_weight_names_are_all_params() -> None:
    for config in (Config(layers=2), Config(layers=2, tied=True), Config(embeddings=True)):
        small = Config(**{**vars(config), "layers": 2, "vocab": 8, "hidden": 8, "ffn": 8})
        params = {v.name for v in trace(Llama(small)).params}
        assert weight_names(small).keys() == params
