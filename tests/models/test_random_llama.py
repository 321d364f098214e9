"""Random small Llamas, built for the CPU, against transformers' own LlamaForCausalLM."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.layer import trace
from graphdsl.models.llama import Config, Llama, weight_names
from graphdsl.reference import error_of
from graphdsl.runtime.operator import Operator

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

pytestmark = pytest.mark.fuzz
LOGITS = 1e-4
"""max|ours - ref| / max|ref| of a row's logits in f32."""


@dataclass(frozen=True)
class Draw:
    """A model and a batch: `lengths` tokens of every row count, of `past + tokens`."""

    config: Config
    past: int
    tokens: int
    lengths: tuple[int, ...]


def draw(seed: int) -> Draw:
    rng = random.Random(seed)
    heads = rng.randint(1, 8)
    kv_heads = rng.choice([n for n in range(1, heads + 1) if heads % n == 0])
    config = Config(vocab=rng.randint(50, 400), hidden=8 * heads * rng.randint(1, 5),
                    layers=rng.randint(1, 3), heads=heads, kv_heads=kv_heads,
                    head_dim=2 * rng.randint(8, 64), ffn=rng.randint(20, 260), eps=1e-5,
                    theta=rng.choice([1e4, 5e5]), tied=rng.random() < 0.5)
    past = rng.choice([0, 0, 1, rng.randint(2, 300)])
    tokens = rng.choice([1, rng.randint(1, 70)])
    total = past + tokens
    lengths = tuple(rng.randint(max(1, total - past), total) for _ in range(rng.randint(1, 3)))
    return Draw(config, past, tokens, (total, *lengths[1:]))


def theirs(config: Config) -> Any:
    c = config
    made = transformers.LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        intermediate_size=c.ffn, rms_norm_eps=c.eps, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": c.theta},
        tie_word_embeddings=c.tied)
    return transformers.LlamaForCausalLM(made).eval()


def ours(config: Config, options: BuildOptions, model: Any) -> Operator:
    operator = Operator(build_graph(trace(Llama(config)), options).path)
    state_dict = model.state_dict()
    return operator.bind({a: state_dict[b] for a, b in weight_names(config).items()})


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    return BuildOptions(cache=tmp_path_factory.mktemp("cache"), environment=dict(os.environ))


def test_logits_equal_those_of_transformers(options: BuildOptions, fuzz_seed: int) -> None:
    drawn = draw(fuzz_seed)
    torch.manual_seed(fuzz_seed)
    model = theirs(drawn.config)
    operator = ours(drawn.config, options, model)
    batch, total = len(drawn.lengths), drawn.past + drawn.tokens
    ids = torch.randint(0, drawn.config.vocab, (batch, total))
    mask = torch.tensor([[i >= total - n for i in range(total)] for n in drawn.lengths]).long()
    positions = torch.where(mask.bool(), mask.cumsum(1) - 1, -1).int()
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask,
                       position_ids=positions.clamp(min=0).long()).logits[:, drawn.past:]
    state = operator.new_state(batch, total)
    found = torch.empty(0)
    for start, end in ((0, drawn.past), (drawn.past, total)):
        if end > start:
            rows = torch.arange(end - start, dtype=torch.int32).repeat(batch, 1)
            found = operator(ids[:, start:end].int().contiguous(),
                             positions[:, start:end].contiguous(), rows, state=state)
    kept = mask[:, drawn.past:].bool()
    worst = max(error_of(a, b) for a, b in zip(found[kept], wanted[kept], strict=True))
    assert worst <= LOGITS, drawn
