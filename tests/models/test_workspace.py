"""The workspace of every example and family, beside the least that any placement needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_families import SMALL

from graphdsl.backends.cpu.backend import BACKEND
from graphdsl.call_plan import CallPlan, make_plan
from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.models import bert, chatglm, gemma, glm, gpt2, llama, mixtral, qwen
from graphdsl.passes.memory import ordered
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.placement import Live, bound_of, peak_of, report, usage
from graphdsl.source import load_source

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST = 1.1
SIZES: tuple[Mapping[str, int], ...] = (
    {"batch": 1, "tokens": 1, "slots": 64, "outputs": 1},
    {"batch": 4, "tokens": 1, "slots": 64, "outputs": 1},
    {"batch": 1, "tokens": 7, "slots": 64, "outputs": 7},
    {"batch": 1, "tokens": 128, "slots": 128, "outputs": 1},
    {"batch": 3, "tokens": 1000, "slots": 1024, "outputs": 5},
)


def plan_of(graph: Graph) -> CallPlan:
    lowered = run_pipeline(graph, BACKEND.target)
    return make_plan(lowered.graph, lowered.recipes, BACKEND, ordered)


def check(graph: Graph) -> None:
    plan = plan_of(graph)
    for sizes in SIZES:
        for threads in (1, 2, 8):
            dims = {d.name: sizes.get(d.name, 5) for d in plan.dims}
            found = usage(plan, lambda text, known, n=threads: BACKEND.size(text, known, n), dims)
            assert found.ratio <= MOST, (dims, threads, found)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("example", sorted(p.stem for p in EXAMPLES.glob("*.py")))
def test_examples(example: str, dtype: str) -> None:
    check(load_source(EXAMPLES / f"{example}.py", {}, dtype).graph)


LARGE: dict[str, tuple[Any, Any]] = {
    "llama": (llama.Llama, llama.LLAMA_7B), "qwen2": (qwen.Qwen2, qwen.QWEN2_05B),
    "qwen3": (qwen.Qwen3, qwen.QWEN3_06B), "gpt2": (gpt2.GPT2, gpt2.GPT2_SMALL),
    "glm4": (glm.Glm, glm.GLM4_9B), "chatglm2": (chatglm.ChatGLM2, chatglm.CHATGLM2_6B),
    "gemma3": (gemma.Gemma, gemma.GEMMA_3_1B), "bert": (bert.Bert, bert.BERT_BASE),
    "mixtral": (mixtral.Mixtral, mixtral.MIXTRAL_8X7B)}


@pytest.mark.parametrize("family", SMALL)
def test_families(family: str) -> None:
    """Small ones, and a few layers of the sizes that are in use."""
    check(trace(SMALL[family], "bf16"))
    model, config = LARGE[family]
    layers = 12 if family == "gemma3" else 3
    check(trace(model(replace(config, layers=layers)), "bf16"))


def test_placement() -> None:
    chain = [Live(640, i, i + 1) for i in range(4)]
    assert (peak_of(chain), bound_of(chain)) == (1280, 1280)
    assert (peak_of([]), bound_of([])) == (0, 0)


def test_report() -> None:
    line = report(plan_of(trace(SMALL["llama"])), BACKEND.size)
    assert line.count("of the lower bound") == 2
    assert "for 1 token (1.0" in line
