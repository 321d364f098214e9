"""What calls cost, against numbers counted by hand, and how often builds that measure run them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from graphdsl.backends.cpu.backend import CPU
from graphdsl.builder import BuildOptions, build_graph, lower
from graphdsl.call_plan import CallPlan
from graphdsl.ir import Graph, Value
from graphdsl.layer import Layer, Param, trace
from graphdsl.models.gemma import Config as GemmaConfig
from graphdsl.models.gemma import Gemma
from graphdsl.models.llama import Config, Llama
from graphdsl.models.mixtral import Config as MixtralConfig
from graphdsl.models.mixtral import Mixtral
from graphdsl.ops import linear, reduce_sum, silu
from graphdsl.passes.samples import reference_outputs, samples
from graphdsl.reference import TOLERANCE, error_of
from graphdsl.roofline_costs import Cost, Step, cost, places
from graphdsl.runtime.operator import Operator

SIZES = {"vocab": 64, "hidden": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8,
         "ffn": 48}
STEP = Step({"batch": 1, "tokens": 2, "slots": 16, "outputs": 1, "blocks": 4, "pages": 4}, past=5)
"""Two tokens behind five, and the logits of one of them."""
T = 2
BF16 = 2


def planned(graph: Graph, dtype: str = "bf16",
            passes: Mapping[str, Mapping[str, str]] | None = None) -> CallPlan:
    options = BuildOptions(cache=Path("unused"), dtype=dtype, passes=passes or {})
    return CPU().plan(lower(graph, options))


def costs(plan: CallPlan, step: Step = STEP) -> dict[str, list[tuple[int, Cost]]]:
    """Turns and cost of every call, by op."""
    found: dict[str, list[tuple[int, Cost]]] = {}
    for place in places(plan):
        found.setdefault(place.call.op, []).append((place.turns, cost(place, plan, step)))
    return found


def test_a_model_counted_by_hand() -> None:
    """Weights, rows that are looked up, the rows of a cache that are appended and those that are
    seen come from memory, but what one call leaves for the next does not."""
    found = costs(planned(trace(Llama(Config(**SIZES)), "bf16")))
    hidden, qkv, keys, ffn, vocab = 32, 64, 2 * 8, 48, 64
    assert found["embedding"] == [(1, Cost(T * 4 + 2 * T * hidden * BF16,
                                           T * 4 + T * hidden * BF16, 0, "f32"))]
    head, layers, up = found["matmul_prologue"]
    assert (head[0], layers[0], up[0]) == (1, 3, 3)
    assert head[1].memory == (vocab * hidden + hidden) * BF16 + vocab * 4
    assert layers[1].memory == (qkv * hidden + hidden) * BF16
    assert layers[1].moved == layers[1].memory + T * (hidden + qkv) * BF16
    assert up[1].memory == (2 * ffn * hidden + hidden) * BF16
    assert 0 <= up[1].operations - 2 * T * 2 * ffn * hidden < T * (10 * ffn + 10 * hidden)
    out, down = found["matmul_epilogue"]
    assert out[1].memory == hidden * hidden * BF16
    assert down[1].memory == ffn * hidden * BF16
    assert down[1].operations == T * hidden * (2 * ffn + 1)
    assert [kind.kind for _, kind in found["matmul_epilogue"]] == ["bf16", "bf16"]
    ((turns, append),) = found["rope_append"]
    assert (turns, append.memory) == (3, 2 * T * keys * BF16)
    ((turns, attention),) = found["attention"]
    assert (turns, attention.memory) == (3, 2 * (5 + T) * keys * BF16)
    assert attention.operations == 2 * 4 * (8 + 8) * (6 + 7)


def test_caches_as_they_are_stored() -> None:
    """A row of an int8 cache has a scale, and a pool of blocks is not read as a whole."""
    layout = {"kv_layout": {"order": "bsnd", "policy": "paged", "block": "4", "storage": "int8"}}
    found = costs(planned(trace(Llama(Config(**SIZES)), "bf16"), passes=layout))
    row = 2 * (8 + 4)
    assert found["rope_append"][0][1].memory == 2 * T * row
    assert found["attention"][0][1].memory == 2 * (5 + T) * row


def test_a_window_and_experts() -> None:
    """Keys that a window hides are not counted, nor experts beyond those that can be chosen."""
    found = costs(planned(trace(Gemma(GemmaConfig(**SIZES, window=4)), "f32")))
    windowed = {each.memory for _, each in found["attention"]}
    assert 2 * (4 + T - 1) * 2 * 8 * 4 in windowed
    mixtral = planned(trace(Mixtral(MixtralConfig(**SIZES, experts=8)), "f32"))
    one = Step({**STEP.dims, "tokens": 1}, past=5)
    chosen, expert = 2, 32 * 48 * 4
    down = costs(mixtral, one)["expert_linear"][-1][1]
    assert (down.memory, down.operations) == (chosen * expert, chosen * 2 * 32 * 48)


class Block(Layer):
    signature = "x[batch, 24] -> y[batch, 24]"

    def __init__(self) -> None:
        self.w = Param(24, 24)

    def forward(self, x: Value) -> Value:
        y: Value = silu(linear(x, self.w)) + reduce_sum(x)
        return y


class Stack(Layer):
    """Equal layers, which become a repeat of several calls."""

    signature = "x[batch, 24] -> y[batch, 24]"

    def __init__(self) -> None:
        self.blocks = [Block() for _ in range(4)]

    def forward(self, x: Value) -> Value:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Operator, CallPlan]:
    graph, backend = trace(Stack()), CPU().with_times()
    options = BuildOptions(cache=tmp_path_factory.mktemp("timed"), environment=dict(os.environ))
    operator = Operator(build_graph(graph, options, backend).path)
    return graph, operator, backend.plan(lower(graph, options, backend))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_build_that_measures(threads: int, timed: tuple[Graph, Operator, CallPlan]) -> None:
    """It computes the same, and every call of its plan has the times of its turns in one step."""
    graph, operator, plan = timed
    given = samples(graph, 0)
    operator.bind(given.params)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(2):
            found = operator(*given.inputs.values())
        times = operator.call_times()
    finally:
        torch.set_num_threads(before)
    assert error_of(found, reference_outputs(graph, given)[0]) <= TOLERANCE["f32"]
    assert max(place.turns for place in places(plan)) == 4
    for place in places(plan):
        nanoseconds, turns, waited = times[place.number]
        assert turns == place.turns
        assert nanoseconds > 0
        assert waited >= 0


def test_only_a_build_that_measures_has_times() -> None:
    plan = planned(trace(Stack()), "f32")
    plain, timed = (backend.render(plan, "{}") for backend in (CPU(), CPU().with_times()))
    assert [name for name in plain if plain[name] != timed[name]] == ["src/Stack.cpp"]
    assert "time" not in plain["src/Stack.cpp"]
