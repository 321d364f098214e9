"""Static graphs built for the cpu: tokens of a model equal those of the dynamic one, and layers
have no symbolic size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from staticcase import LAYERS, LENGTH, MODELS, Dynamic, built, has_dims, worst_of
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

from graphdsl.builder import BuildOptions
from graphdsl.cli import main
from graphdsl.errors import GraphError
from graphdsl.hf.generate import collect, generate
from graphdsl.hf.model import open_model
from graphdsl.hf.sampling import Sampling
from graphdsl.hf.static import StaticModel
from graphdsl.layer import trace
from graphdsl.passes.samples import samples
from graphdsl.passes.static import static
from graphdsl.reference import TOLERANCE, error_of, run
from graphdsl.runtime.door import schema, torch_op
from graphdsl.runtime.static import StaticSession

TINY = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": 0, "eos_token_id": 98}
FULL = pytest.mark.full


@dataclass(frozen=True)
class Tiny:
    """A model with random weights, and where it is on disk."""

    theirs: Any
    path: Path

    def greedy(self, prompt: list[int], new: int) -> tuple[int, ...]:
        """The new tokens of transformers, whose sizes are dynamic."""
        with torch.no_grad():
            ids = self.theirs.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False)
        return tuple(ids[0, len(prompt):].tolist())


@pytest.fixture(scope="module", params=["llama", pytest.param("glm", marks=FULL)])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """GLM turns half of a head, pair by pair."""
    torch.manual_seed(7)
    made = (LlamaForCausalLM(LlamaConfig(**TINY)) if request.param == "llama" else
            GlmForCausalLM(GlmConfig(**TINY, head_dim=16, partial_rotary_factor=0.5))).eval()
    with torch.no_grad():
        for weight in made.parameters():
            # Larger than the initial weights: then no model says one token for ever.
            weight.copy_(torch.randn_like(weight) * 0.2 + (weight.ndim == 1))
    path = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(path)
    return Tiny(made, path)


@pytest.mark.parametrize("cache", ["shift", pytest.param("append", marks=FULL)])
def test_tokens_equal_those_of_a_dynamic_model(tiny: Tiny, cache: str,
                                               options: BuildOptions) -> None:
    model = StaticModel(open_model(tiny.path, options), 32, cache)
    for prompt in ([5], [3, 9, 17, 2, 11], list(range(2, 30))):
        new = 33 - len(prompt)
        sampling = Sampling(new, greedy=True, eos=(98,))
        found = collect([prompt], generate(model, [prompt], sampling)).ids
        assert found[0] == tiny.greedy(prompt, new)
    assert not has_dims(model.operator.manifest)
    assert not has_dims(model.step_operator.manifest)
    assert "Tensor layers_0_kv_k, Tensor layers_0_kv_v, Tensor[] weights" in schema(
        model.step_operator)
    pairs = zip(model.operator.weights, model.step_operator.weights, strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs), "weights are there once"


def test_what_generate_cannot_do(tiny: Tiny, options: BuildOptions) -> None:
    model = StaticModel(open_model(tiny.path, options), 32)
    with pytest.raises(GraphError, match="2 prompts at once; a static graph is for one"):
        generate(model, [[1], [2]], Sampling(3, greedy=True))
    with pytest.raises(GraphError, match="the prompt has 40 tokens; the static length is 32"):
        collect([[2] * 40], generate(model, [[2] * 40], Sampling(3, greedy=True)))
    with pytest.raises(GraphError, match="the static cache is full: it holds 32 of 32 tokens"):
        collect([[2] * 30], generate(model, [[2] * 30], Sampling(9, greedy=True)))


def test_generate_from_the_command_line(tiny: Tiny, options: BuildOptions,
                                        monkeypatch: pytest.MonkeyPatch,
                                        capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(options.cache))
    prompt = [3, 9, 17, 2, 11]
    command = ["generate", str(tiny.path), "--prompt-ids", " ".join(map(str, prompt)), "--ids",
               "--greedy", "--dtype", "f32", "--static", "32", "--max-new-tokens"]
    assert main([*command, "20"]) == 0
    found = capfd.readouterr().out.splitlines()[-1]
    assert found == " ".join(map(str, tiny.greedy(prompt, 20)))
    assert main([*command, "40", "--min-new-tokens", "40"]) == 2
    assert "error: the static cache is full: it holds 32 of 32" in capfd.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_no_symbolic_size(name: str, options: BuildOptions) -> None:
    graphs = static(LAYERS[name], LENGTH)
    params = samples(trace(LAYERS[name]), seed=0).params
    for graph, operator in zip((graphs.block, graphs.block_cache),
                               built(graphs, params, options), strict=True):
        assert operator.name == graph.name
        assert operator.dims == []
        assert not has_dims(operator.manifest)
        inputs = samples(graph, seed=1).inputs
        found = operator(*(inputs[v.name] for v in graph.inputs))
        for ours, wanted in zip(found, run(graph, inputs, params), strict=True):
            assert error_of(ours, wanted) <= TOLERANCE["f32"]
        same = torch_op(operator)(*(inputs[v.name] for v in graph.inputs), operator.weights)
        assert all(map(torch.equal, found, same))


@pytest.mark.full
def test_a_window_on_the_cpu(options: BuildOptions) -> None:
    dynamic = Dynamic.of(MODELS["gemma3"])
    block, block_cache = built(static(MODELS["gemma3"], LENGTH), dynamic.params, options)
    session = StaticSession(block, block_cache, LENGTH, torch.float32)
    assert worst_of(session, dynamic, 4) <= TOLERANCE["f32"]
