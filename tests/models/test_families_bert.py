"""Random small BERTs from disk, against transformers' BertModel; whole sequences with masks, for an
encoder has no cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bundle import bundle, with_prefix
from familycase import SEEDS, randomise
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel

from graphdsl.backend import find_backend
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.hf.config import read_config
from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.models.bert import Bert, BertLayer, Config, weight_names
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.reference import error_of, run
from graphdsl.runtime.operator import Operator
from graphdsl.source import load_source

EXAMPLE = Path(__file__).parents[2] / "examples" / "bert_layer.py"
LIMIT = 1e-4
"""max|ours - theirs| / max|theirs| of a token's hidden states in f32."""
MASKS = (((1,),), ((0, 0, 0, 1, 1, 1, 1), (1,) * 7, (1, 1, 1, 1, 1, 0, 0), (1, 0, 1, 0, 1, 0, 1)))
"""One token; then padding on the left, nowhere, on the right and in between."""


@dataclass(frozen=True)
class Trial:
    """A BertModel of transformers, and the same from disk."""

    seed: int
    theirs: BertModel
    config: Config
    graph: Graph
    params: dict[str, Tensor]

    def inputs(self, mask: Tensor) -> list[Tensor]:
        """ids, types, places and mask of random texts; half of the places do not count from 0."""
        generator = torch.Generator().manual_seed(self.seed)
        c, shape = self.config, mask.shape
        places = torch.arange(shape[1]).expand(shape)
        if self.seed % 2:
            places = torch.randint(0, c.max_positions, shape, generator=generator)
        return [torch.randint(0, c.vocab, shape, generator=generator).int(),
                torch.randint(0, c.token_types, shape, generator=generator).int(),
                places.int().contiguous(), mask.bool()]

    def wanted(self, mask: Tensor) -> Tensor:
        ids, types, places, _ = self.inputs(mask)
        return self.theirs(ids.long(), attention_mask=mask, token_type_ids=types.long(),
                           position_ids=places.long()).last_hidden_state


def drawn_trial(seed: int, folder: Path) -> Trial:
    dice = random.Random(seed)
    heads = dice.randint(1, 4)
    c = Config(vocab=dice.randint(10, 60), hidden=heads * dice.randint(2, 17),
               layers=dice.randint(1, 3), heads=heads, ffn=dice.randint(5, 80),
               eps=dice.choice([1e-12, 1e-3]), token_types=dice.randint(1, 3),
               max_positions=dice.randint(7, 30),
               activation=dice.choice(["gelu", "gelu_new", "relu"]))
    torch.manual_seed(seed)
    theirs = BertModel(BertConfig(
        vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, intermediate_size=c.ffn, layer_norm_eps=c.eps,
        hidden_act=c.activation, max_position_embeddings=c.max_positions,
        type_vocab_size=c.token_types, attn_implementation="eager"),
        add_pooling_layer=False).eval()
    randomise(theirs)
    theirs.save_pretrained(folder)
    weights, names = load_file(folder / "model.safetensors"), weight_names(c)
    assert set(names.values()) == weights.keys()
    graph = trace(Bert(c))
    assert names.keys() == {v.name for v in graph.params}
    return Trial(seed, theirs, c, graph, {ours: weights[theirs] for ours, theirs in names.items()})


Machine = Callable[[Sequence[Trial], Tensor], list[Tensor]]


def in_reference(trials: Sequence[Trial], mask: Tensor) -> list[Tensor]:
    return [run(t.graph, t.inputs(mask), t.params)[0] for t in trials]


def after_passes(trials: Sequence[Trial], mask: Tensor) -> list[Tensor]:
    found = []
    for t in trials:
        lowered = run_pipeline(t.graph, find_backend("cpu").target)
        made = {name: run(recipe, {}, t.params)[0] for name, recipe in lowered.recipes.items()}
        found += run(lowered.graph, t.inputs(mask), {**t.params, **made})
    return found


@torch.no_grad()
def check(trials: Sequence[Trial], machine: Machine) -> None:
    """The hidden states of every real token are those of transformers."""
    for mask in map(torch.tensor, MASKS):
        real = mask.bool()
        for trial, found in zip(trials, machine(trials, mask), strict=True):
            worst = max(map(error_of, found[real], trial.wanted(mask)[real]))
            assert worst <= LIMIT, (trial.seed, trial.config, worst)


@pytest.mark.parametrize("seed", SEEDS)
def test_bert(seed: int, tmp_path: Path) -> None:
    trial = drawn_trial(seed, tmp_path)
    check([trial], in_reference)
    check([trial], after_passes)


@pytest.mark.fuzz
def test_bert_cpu(cpu_seeds: range, tmp_path: Path, options: BuildOptions) -> None:
    trials = [drawn_trial(seed, tmp_path / str(seed)) for seed in cpu_seeds]
    operator = Operator(build_graph(bundle([t.graph for t in trials]), options).path)
    operator.bind({name: tensor for i, t in enumerate(trials)
                   for name, tensor in with_prefix(i, t.params).items()})

    def on_the_cpu(trials: Sequence[Trial], mask: Tensor) -> list[Tensor]:
        result = operator(*(tensor for t in trials for tensor in t.inputs(mask)))
        return [result] if isinstance(result, Tensor) else list(result)

    check(trials, on_the_cpu)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(GraphError, match=r"no activation 'mish'.*\n.*supported: gelu"):
        trace(BertLayer(Config(hidden=8, heads=2, ffn=8, activation="mish")))


def test_a_folder_of_an_encoder_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(GraphError) as caught:
        read_config(tmp_path)
    assert "model_type is 'bert'; supported: " in caught.value.message
    assert "an encoder, which writes no text" in caught.value.hint


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1], ids=["plain torch", "transformers"])
def test_the_peers_of_the_example_agree(which: int) -> None:
    source = load_source(EXAMPLE, {"hidden": "48", "heads": "6", "ffn": "40"})
    torch.manual_seed(0)
    params = {v.name: torch.randn(v.shape) / v.shape[-1] ** 0.5 for v in source.graph.params}
    peer = source.peer()[which]
    peer.load(params)
    mask = torch.tensor(MASKS[1]).bool()
    x = torch.randn(*mask.shape, 48)
    assert error_of(peer(x, mask), run(source.graph, [x, mask], params)[0]) < 1e-5
