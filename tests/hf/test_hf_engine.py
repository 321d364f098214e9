"""An engine over built operators: every request gets the tokens of transformers, whatever the
layout of the caches, the pool and the company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.model import LanguageModel, open_model
from graphdsl.hf.sampling import Sampling

NEW = 14
PROMPTS = [[5, 17, 31, 8] * 5, [44], [5, 17, 31, 8] * 5 + [90, 12, 3], list(range(30, 41))]
LAYOUTS = ({"storage": "int8", "block": "4"}, {"block": "8"}, {"order": "bsnd", "block": "3"},
           {"order": "sbnd", "storage": "int8", "block": "5"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path, options: BuildOptions) -> LanguageModel:
    return open_model(folder, options)


def theirs(**options: Any) -> list[list[int]]:
    """The tokens of transformers, prompt by prompt."""
    found, model = [], tiny_model()
    for prompt in PROMPTS:
        with torch.inference_mode():
            out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW,
                                 eos_token_id=2, pad_token_id=0, **options)
        found.append(out[0, len(prompt):].tolist())
    return found


def of_layout(model: LanguageModel, layout: dict[str, str]) -> LanguageModel:
    return replace(model, options=replace(model.options, passes={"kv_layout": layout})).paged


@pytest.mark.parametrize("layout", [
    LAYOUTS[0], *(pytest.param(each, marks=pytest.mark.full) for each in LAYOUTS[1:])], ids=str)
def test_together_as_alone(layout: dict[str, str], model: LanguageModel, one_thread: None) -> None:
    paged = of_layout(model, layout)
    sampling, drawn = Sampling(NEW, greedy=True, eos=(2,)), Sampling(NEW, top_k=9, eos=(2,))
    blocks = -(-80 // paged.operator.block)
    engine = paged.engine(blocks, max_batch=5, chunk=16)
    greedy = [engine.add(prompt, sampling) for prompt in PROMPTS]
    random = [engine.add(prompt, drawn, seed=i) for i, prompt in enumerate(PROMPTS)]
    beams = engine.add(PROMPTS[2], sampling, beams=2)
    list(engine.run())
    assert engine.blocks.free == blocks
    assert engine.scheduler.put_back > 0
    assert engine.scheduler.found > 0
    for i, prompt in enumerate(PROMPTS):
        assert greedy[i].ids == paged.generate([prompt], sampling=sampling).ids[0]
        assert random[i].ids == paged.generate([prompt], sampling=drawn, seed=i).ids[0]
    alone = paged.engine(max_batch=2)
    wanted = alone.add(PROMPTS[2], sampling, beams=2)
    list(alone.run())
    assert beams.ids == wanted.ids
    if layout.get("storage") != "int8":
        assert [list(request.ids) for request in greedy] == theirs()
        assert list(beams.ids) == theirs(num_beams=2)[2]


def test_at_least_16_rows(model: LanguageModel, one_thread: None) -> None:
    engine = of_layout(model, LAYOUTS[0]).engine(40, max_batch=20)
    requests = [engine.add([7, i], Sampling(3, greedy=True)) for i in range(20)]
    list(engine.run())
    assert engine.totals.steps < 6
    assert len({request.ids for request in requests}) > 1


@pytest.mark.parametrize(("arguments", "message"), [
    ({"blocks": 0}, "blocks is 0; wanted: 1 or more"),
    ({"max_batch": 0}, "max_batch is 0; wanted: 1 or more"),
    ({"chunk": -1}, "chunk is -1; wanted: 1 or more"),
    ({"blocks": 1 << 21}, "a pool of 2097152 blocks; wanted: 1 to 1048576"),
])
def test_engines_that_cannot_be(arguments: dict[str, int], message: str,
                                model: LanguageModel) -> None:
    with pytest.raises(GraphError, match=message):
        of_layout(model, LAYOUTS[0]).engine(**arguments)


def test_caches_that_are_not_paged(model: LanguageModel) -> None:
    with pytest.raises(GraphError, match="paged KV caches, but these are shift"):
        replace(model, options=replace(model.options, passes={
            "kv_layout": {"policy": "shift"}})).engine()
    with pytest.raises(GraphError, match="its KV caches are not paged"):
        model.pool(3)
