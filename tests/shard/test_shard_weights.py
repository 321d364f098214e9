"""A rank reads its part of a checkpoint and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from shardcase import lowered_ranks
from torch import Tensor

from graphdsl.hf.safetensors_weights import open_safetensors
from graphdsl.layer import trace
from graphdsl.models import chatglm, gpt2, llama
from graphdsl.passes.samples import samples
from graphdsl.recipes import of_parts, parts_of, recipe_json, run_recipe
from graphdsl.reference import run

SIZES = {"vocab": 48, "hidden": 16, "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 4,
         "ffn": 24}


class Reader(Mapping[str, Tensor]):
    """Weights of which every number that is read is counted."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights, self.read = weights, 0

    def __getitem__(self, name: str) -> Tensor:
        self.read += self.weights[name].numel()
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def part(self, name: str, axis: int, start: int, size: int) -> Tensor:
        found = self.weights[name].narrow(axis, start, size)
        self.read += found.numel()
        return found


def test_a_rank_reads_its_part() -> None:
    for model in (llama.Llama(llama.Config(**SIZES)), gpt2.GPT2(gpt2.Config(48, 32, 16, 1, 4, 24)),
                  chatglm.ChatGLM2(chatglm.Config(**SIZES))):
        graph = trace(model)
        given = samples(graph, 0).params
        matrices = {n: w for n, w in given.items() if w.dim() > 1 and n != "position_table"}
        for lowered in lowered_ranks(graph, 2):
            reader = Reader(given)
            for recipe in lowered.recipes.values():
                steps = recipe_json(recipe)
                parts = parts_of(steps)
                if parts is None:  # norms, or a bias that is no weight of its own
                    continue
                found = run_recipe(of_parts(steps), {
                    text: reader.part(p.name, p.axis, p.start, p.size)
                    for text, p in parts.items()})
                assert torch.equal(found, run(recipe, {}, given)[0])
            whole = sum(w.numel() for w in matrices.values())
            vectors = sum(w.numel() for w in given.values() if w.dim() == 1)
            assert whole // 2 <= reader.read <= whole // 2 + vectors


def test_a_recipe_that_reads_more_than_slices_has_no_parts() -> None:
    lowered = lowered_ranks(trace(llama.Llama(llama.Config(**SIZES))), 1)[0]
    assert [r for r in lowered.recipes.values() if parts_of(recipe_json(r))] == []


def test_a_part_of_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weight = torch.randn(6, 8)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    files = open_safetensors(tmp_path)
    assert torch.equal(files.read_part("w", 0, 2, 3), weight[2:5])
    assert torch.equal(files.read_part("w", 1, 4, 4), weight[:, 4:])
