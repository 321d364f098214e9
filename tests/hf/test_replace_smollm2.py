"""A real model, SmolLM2-135M-Instruct, in transformers and with its layers replaced."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from replacecase import STATIC, Pair
from transformers import LlamaConfig, LlamaForCausalLM

from graphdsl.builder import BuildOptions
from graphdsl.hf.checkpoint import Checkpoint, open_checkpoint
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.replace import replace_layers
from graphdsl.hf.tokenizer import load_tokenizer

NEW = 12
PROMPTS = ("What is gravity?", "Write a sentence about the sea, and one about boats.",
           "Name three colours.")
LONGEST = 1


def in_transformers(checkpoint: Checkpoint) -> Any:
    """The model with the weights of the checkpoint, in f32."""
    settings = checkpoint.settings
    c = settings.family.config
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        intermediate_size=c.ffn, rms_norm_eps=c.eps, max_position_embeddings=settings.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": c.theta},
        tie_word_embeddings=c.tied, eos_token_id=None, pad_token_id=0))
    weights = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    model.tie_weights()
    return model.eval()


@pytest.fixture(scope="module")
def pair(smollm2: Path, cache: Path) -> Pair:
    theirs = in_transformers(open_checkpoint(smollm2))
    ours = copy.deepcopy(theirs)
    options = BuildOptions(cache=cache, environment=dict(os.environ))
    return Pair(theirs, ours, replace_layers(ours, options))


@pytest.fixture(scope="module")
def padded(smollm2: Path, cache: Path) -> dict[str, Any]:
    """Three prompts, the shorter ones padded on the left."""
    tokenizer = load_tokenizer(smollm2, cache)
    rows = [encode_prompt(tokenizer, text) for text in PROMPTS]
    width = max(map(len, rows))
    return {"input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows])}


def longest(padded: dict[str, Any]) -> Any:
    """The prompt without padding."""
    return padded["input_ids"][LONGEST:LONGEST + 1]


def test_greedy(pair: Pair, padded: dict[str, Any]) -> None:
    wanted, found = pair.generate(input_ids=longest(padded), max_new_tokens=NEW)
    assert torch.equal(wanted, found)
    assert pair.replaced.copied_bytes == {}


@pytest.mark.full
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", [
    {}, STATIC, {"num_beams": 3}, {"num_beams": 3, **STATIC}, {"do_sample": True},
    {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "static", "beams", "static beams", "sampled", "lookup"])
def test_modes(pair: Pair, padded: dict[str, Any], attention: str, mode: dict[str, Any]) -> None:
    pair.use(attention)
    one = "prompt_lookup_num_tokens" in mode
    given = {"input_ids": longest(padded)} if one else padded
    wanted, found = pair.generate(**given, max_new_tokens=NEW, **mode)
    assert torch.equal(wanted, found)


@torch.no_grad()
@pytest.mark.full
def test_embeddings_and_hidden_states(pair: Pair, padded: dict[str, Any]) -> None:
    given = pair.theirs.get_input_embeddings()(padded["input_ids"])
    mask = padded["attention_mask"]
    wanted, found = pair.generate(inputs_embeds=given, attention_mask=mask, max_new_tokens=NEW)
    assert torch.equal(wanted, found)
    states = [model(**padded, output_hidden_states=True).hidden_states
              for model in (pair.theirs, pair.ours)]
    assert len(states[0]) == len(states[1]) == 31
    for theirs, ours in zip(*states, strict=True):
        difference = (theirs - ours)[mask.bool()].abs().max()
        assert difference <= 1e-4 * theirs[mask.bool()].abs().max()
