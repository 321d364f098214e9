"""Generated calls with quantised weights: tables, norms before, epilogues of one and two."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from graphdsl.backends.cpu.backend import BACKEND, CPU
from graphdsl.builder import BuildOptions, build_graph, lower, render
from graphdsl.ir import Graph, Value
from graphdsl.layer import Layer, Param, trace
from graphdsl.ops import embedding, linear, rms_norm, silu
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.passes.quantise import quantised
from graphdsl.passes.samples import Samples, reference_outputs, samples
from graphdsl.quant import Quant
from graphdsl.reference import TOLERANCE, error_of
from graphdsl.runtime.operator import Operator

WIDTH, FFN, WORDS = 64, 96, 80


class Gated(Layer):
    """A table, a norm, gate and up, down with a residual, and the table again."""

    signature = f"ids[batch]:i32 -> y[batch, {WORDS}]"

    def __init__(self) -> None:
        self.table = Param(WORDS, WIDTH)
        self.norm = Param(WIDTH)
        self.gate = Param(FFN, WIDTH)
        self.up = Param(FFN, WIDTH)
        self.down = Param(WIDTH, FFN)

    def forward(self, ids: Value) -> Value:
        x = embedding(ids, self.table)
        h = rms_norm(x, self.norm, eps=1e-5)
        x = x + linear(silu(linear(h, self.gate)) * linear(h, self.up), self.down)
        return linear(x, self.table)


def gated(formats: Mapping[str, str], dtype: str) -> Graph:
    return quantised(trace(Gated(), dtype), lambda name, kind: Quant.parse(formats[name]))


def in_one(form: str) -> dict[str, str]:
    return dict.fromkeys(("table", "gate", "up", "down"), form)


def check(graph: Graph, dtype: str, cache: Path) -> str:
    """Compares a build with the reference on the weights that it computes with; its C++."""
    options = BuildOptions(cache=cache, dtype=dtype, environment=dict(os.environ))
    built = build_graph(graph, options)
    operator = Operator(built.path)
    before = torch.get_num_threads()
    for threads, batch in ((1, 1), (2, 3), (2, 20)):
        torch.set_num_threads(threads)
        given = samples(graph, 1, {"batch": batch})
        params = {name: weight.to(given.params[name].dtype)
                  for name, weight in operator.dequantised(given.params).items()}
        wanted = reference_outputs(graph, Samples(given.inputs, params, {}, given.dims))
        found = operator.bind(given.params)(*given.inputs.values())
        assert error_of(found, wanted[0]) <= TOLERANCE[dtype], (threads, batch)
    torch.set_num_threads(before)
    return next((built.path / "src").glob("*.cpp")).read_text()


@pytest.mark.parametrize(("form", "dtype"), [
    ("int4:32", "bf16"), pytest.param("int8", "f32", marks=pytest.mark.full),
    pytest.param("int8:16+offset/f32", "bf16", marks=pytest.mark.full)])
def test_every_kind_of_call(form: str, dtype: str, tmp_path: Path) -> None:
    code = check(gated(in_one(form), dtype), dtype, tmp_path)
    assert "Team makers" in code  # the norm is made by the call that multiplies it
    assert "F acc0, F acc1" in code
    assert '#include "matmul_quant.hpp"' in code


def test_weights_of_two_formats_are_two_calls() -> None:
    """Gate and up meet in one epilogue only if they have one format."""
    graph = gated(in_one("int4:32") | {"up": "int8:32"}, "f32")
    missed = [str(m) for done in run_pipeline(graph, BACKEND.target).report for m in done.missed]
    assert any("gate is int4:32 and up is int8:32: they are two calls" in m for m in missed)


def test_nothing_is_included_where_nothing_is_quantised(tmp_path: Path) -> None:
    options = BuildOptions(cache=tmp_path)
    graph = trace(Gated())
    _, rendered = render(graph, lower(graph, options), options, CPU())
    code = next(text for path, text in rendered.files.items() if path.endswith(".cpp"))
    assert "matmul_quant" not in code
