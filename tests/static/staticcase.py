"""Small Layers and Models, and static graphs beside the dynamic one they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Graph, size_value
from graphdsl.layer import Layer, Model, trace
from graphdsl.models import chatglm, gemma, glm, gpt2, llama, mixtral, qwen
from graphdsl.passes.samples import samples
from graphdsl.passes.static import StaticGraphs, static
from graphdsl.reference import run
from graphdsl.runtime.operator import Operator
from graphdsl.runtime.static import Part, StaticSession

LENGTH = 8
SIZES: dict[str, Any] = {"vocab": 64, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8,
                         "ffn": 48}
LLAMA = llama.Config(**SIZES, layers=2)
MODELS: Mapping[str, Model] = {
    "llama": llama.Llama(LLAMA),
    "mistral": llama.Llama(llama.Config(**SIZES, layers=2, window=3)),
    "qwen3": qwen.Qwen3(qwen.Config(**SIZES, layers=1)),
    "gpt2": gpt2.GPT2(gpt2.Config(vocab=64, hidden=32, layers=1, heads=4, ffn=48,
                                  max_positions=LENGTH)),
    "glm4": glm.Glm(glm.Config(**SIZES, layers=1, rotary_dim=4, sandwich=True)),
    "chatglm2": chatglm.ChatGLM2(chatglm.Config(**SIZES, layers=1)),
    "gemma3": gemma.Gemma(gemma.Config(**SIZES, layers=2, window=3)),
    "mixtral": mixtral.Mixtral(mixtral.Config(**SIZES, layers=1, experts=4)),
}
LAYERS: Mapping[str, Layer] = {
    "llama": llama.LlamaLayer(LLAMA),
    "glm4": glm.GlmLayer(glm.Config(**SIZES, rotary_dim=4)),
    "chatglm2": chatglm.ChatGLM2Layer(chatglm.Config(**SIZES)),
}
"""GLM's rope turns the first half of a head, pair by pair."""


@dataclass
class Dynamic:
    """The graph of a Model in the reference, step by step."""

    graph: Graph
    params: Mapping[str, Tensor]
    state: dict[str, Tensor]

    @staticmethod
    def of(model: Layer, slots: int = LENGTH) -> Dynamic:
        graph = trace(model)
        state = {v.name: torch.zeros([size_value(s, {"batch": 1, "slots": slots})
                                      for s in v.shape]) for v in graph.state}
        return Dynamic(graph, samples(graph, seed=0).params, state)

    def step(self, *inputs: Tensor) -> list[Tensor]:
        """The results; the state is that of the next step."""
        found = run(self.graph, inputs, self.params, self.state)
        count = len(self.graph.results)
        self.state = dict(zip(self.state, found[count:], strict=True))
        return found[:count]


def in_reference(graph: Graph, params: Mapping[str, Tensor]) -> Part:
    """A part as the reference runs it."""
    return lambda *inputs: run(graph, inputs, params)


def built(graphs: StaticGraphs, params: Mapping[str, Tensor], options: BuildOptions,
          ) -> tuple[Operator, Operator]:
    """Both parts for the cpu, with the weights."""
    made = [Operator(build_graph(graph, options).path).bind(params)
            for graph in (graphs.block, graphs.block_cache)]
    return made[0], made[1]


def session_of(model: Layer, params: Mapping[str, Tensor], cache: str = "shift") -> StaticSession:
    """A session in the reference."""
    graphs = static(model, LENGTH, cache=cache)
    return StaticSession(in_reference(graphs.block, params),
                         in_reference(graphs.block_cache, params), LENGTH, torch.float32, cache)


def worst_of(session: StaticSession, dynamic: Dynamic, tokens: int) -> float:
    """The largest relative error of logits, from a prompt of so many tokens until the cache is
    full; the tokens after it are the likeliest."""
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(0, 64, (1, tokens), generator=generator)
    positions, worst = torch.arange(tokens, dtype=torch.int32)[None], 0.0
    while True:
        last = torch.tensor([[ids.shape[1] - 1]], dtype=torch.int32)
        wanted = dynamic.step(ids.int(), positions, last)[0][:, 0]
        found = session.step(ids, positions)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
        ids, positions = wanted.argmax(-1)[:, None], positions[:, -1:] + 1
        if session.past == LENGTH:
            return worst


def has_dims(found: Any) -> bool:
    """Whether a symbolic size is anywhere in a manifest."""
    if isinstance(found, dict):
        return bool(found.get("dims")) or any(map(has_dims, found.values()))
    return isinstance(found, list) and any(map(has_dims, found))


def folders(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())
