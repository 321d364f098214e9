"""A cache that is also a result is returned as the Layer declares it, whatever its layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from graphdsl.backends.cpu.backend import CPU
from graphdsl.ir import Layout, Value
from graphdsl.layer import KVCache, Layer, trace
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text


@dataclass(frozen=True)
class Heads:
    heads: int = 2
    dim: int = 4


class Present(Layer):
    """Appends, and returns the keys."""

    signature: ClassVar[str] = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                                " -> keys[batch, slots, heads, dim]")

    def __init__(self, config: Heads = Heads()) -> None:
        self.config = config
        self.kv = KVCache(config.heads, config.dim)

    def forward(self, x: Value, positions: Value) -> Value:
        return self.kv.append(x, x, positions).k


def test_a_cache_as_a_result(compare: Any) -> None:
    operator = compare(trace(Present()), sizes=({}, {"tokens": 1, "batch": 3}))
    assert operator.manifest["state"][0]["layout"]["order"] == "bnsd"
    keys = operator(torch.zeros(1, 3, 2, 4), torch.arange(3, dtype=torch.int32)[None],
                    state=operator.new_state(1, 7))
    assert keys.shape == (1, 7, 2, 4)


@pytest.mark.parametrize("order", ["bsnd", "bnsd"])
def test_results_have_no_layout(order: str) -> None:
    lowered = run_pipeline(trace(Present()), CPU().target, {"kv_layout": {"order": order}},
                           verify=True)
    assert [v.type.layout for v in lowered.graph.outputs] == [None, Layout(order), Layout(order)]
    again = run_pipeline(lowered.graph, CPU().target, {"kv_layout": {"order": order}})
    assert text(again.graph) == text(lowered.graph)
