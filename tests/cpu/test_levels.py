"""Every set of vector instructions: built always, run where this CPU has it, refused elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from quick import quick_environment

from graphdsl.backends.cpu.backend import CPU
from graphdsl.backends.cpu.features import LEVELS, Level, best_level, cpu_features
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.layer import trace
from graphdsl.models.llama import Config, Llama
from graphdsl.passes.samples import reference_outputs, samples
from graphdsl.reference import TOLERANCE, error_of
from graphdsl.runtime.operator import Operator

SMALL = Config(vocab=51, hidden=48, layers=2, heads=4, kv_heads=2, head_dim=24, ffn=76)


QUICK = ("avx512bf16-bf16", "avx2-f32", "avx2-bf16", "plain-f32")
CASES = [pytest.param(level, dtype, id=f"{level.name}-{dtype}",
                      marks=() if f"{level.name}-{dtype}" in QUICK else pytest.mark.full)
         for level in LEVELS for dtype in ("f32", "bf16")]


@pytest.mark.parametrize(("level", "dtype"), CASES)
def test_a_model_on_every_level(level: Level, dtype: str, tmp_path: Path) -> None:
    graph = trace(Llama(SMALL), dtype)
    options = BuildOptions(cache=tmp_path, dtype=dtype, environment=dict(os.environ))
    built = build_graph(graph, options, CPU(level))
    if not cpu_features().issuperset(level.features):
        with pytest.raises(GraphError, match="lacks"):
            Operator(built.path)
        pytest.skip(f"compiled and refused: this CPU has no {level.name}")
    operator = Operator(built.path)
    for tokens in (1, 9, 40):
        given = samples(graph, 1, {"tokens": tokens, "slots": 64})
        state = operator.new_state(given.dims["batch"], 64)
        empty = {name: tensor * 0 for name, tensor in given.state.items()}
        wanted = reference_outputs(graph, type(given)(given.inputs, given.params, empty,
                                                      given.dims))[0]
        found = operator.bind(given.params)(*given.inputs.values(), state=state)
        assert error_of(found, wanted) <= TOLERANCE[dtype]


def test_the_best_level_that_the_cpu_lists_is_chosen() -> None:
    every = frozenset(f for level in LEVELS for f in level.features)
    assert best_level(every).name == "avx512bf16"
    assert best_level(every - {"avx512_bf16"}).name == "avx512"
    assert best_level(every - {"avx512_vnni"}).name == "avx512"
    assert best_level(frozenset({"avx2", "fma", "f16c"})).name == "avx2"
    assert best_level(frozenset({"avx2"})).name == "plain"


def test_the_level_is_part_of_the_build(tmp_path: Path) -> None:
    graph = trace(Llama(SMALL))
    options = BuildOptions(cache=tmp_path, environment=quick_environment())
    paths = {build_graph(graph, options, CPU(level)).path for level in LEVELS[2:]}
    assert len(paths) == 2


def test_the_workspace_is_hardly_more_than_what_lives_at_once(tmp_path: Path) -> None:
    options = BuildOptions(cache=tmp_path, environment=quick_environment())
    operator = Operator(build_graph(trace(Llama(SMALL)), options).path)
    for tokens in (1, 7, 300):
        dims = {"batch": 2, "tokens": tokens, "slots": 512, "outputs": 1}
        needed, least = operator.workspace_bytes(dims)
        assert least <= needed <= 1.1 * least
