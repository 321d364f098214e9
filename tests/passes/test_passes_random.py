"""Random graphs: what the passes make of them computes the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from passcase import CPU, PLAIN, SINGLE, WHOLE, assert_same
from random_graphs import kernel_soup, random_layer, random_model

from graphdsl.ir import Graph
from graphdsl.passes.base import Pass
from graphdsl.passes.catalogue import FUSIONS, groups
from graphdsl.passes.cleanup import CleanUp
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.epilogues import FuseEpilogues
from graphdsl.passes.fold import Fold, Hoist
from graphdsl.passes.kv_layout import KVLayout
from graphdsl.passes.loops import FuseLoops
from graphdsl.passes.pipeline import PIPELINE, Lowered, run_pass, run_pipeline
from graphdsl.passes.prologues import FusePrologues
from graphdsl.passes.roll import Roll
from graphdsl.passes.samples import reference_outputs, samples
from graphdsl.printer import text
from graphdsl.reference import TOLERANCE, error_of

TARGETS = (CPU, WHOLE, PLAIN, SINGLE)
KERNELS = {"loop", "matmul_epilogue", "matmul_prologue", "repeat"}


def agrees(graph: Graph, seed: int, dtype: str) -> None:
    before = text(graph)
    lowered = run_pipeline(graph, TARGETS[seed % len(TARGETS)])
    assert text(graph) == before
    assert_same(graph, lowered, seed)
    if dtype != "f32":
        return
    given = samples(graph, seed)
    wanted = reference_outputs(graph, given)
    found = reference_outputs(lowered.graph, given, lowered.recipes, exact=False)
    for a, b in zip(found, wanted, strict=True):
        assert error_of(a, b) <= 0.02, "rounding alone does not explain this"


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("seed", range(40))
def test_kernel_soup(seed: int, dtype: str) -> None:
    agrees(kernel_soup(seed, dtype), seed, "bf16" if dtype == "bf16" else "exact")


@pytest.mark.parametrize("seed", range(24))
def test_random_layers(seed: int) -> None:
    agrees(random_layer(seed, "f32"), seed, "f32")


@pytest.mark.parametrize("seed", range(16))
def test_random_models(seed: int) -> None:
    agrees(random_model(seed, "bf16" if seed % 3 == 2 else "f32"), seed, "exact")


@pytest.mark.parametrize("seed", range(16))
def test_random_rules_in_random_order(seed: int) -> None:
    """Any rules in any order, before any expansion, give the same numbers."""
    draw = random.Random(seed)
    makers: list[Callable[[int], Graph]] = [kernel_soup, random_layer]
    graph = makers[seed % 2](seed + 100)
    rules = [*FUSIONS, *groups(draw.choice(TARGETS))]
    chosen = draw.sample(rules, draw.randint(1, len(rules)))
    after, _, _ = apply_rules(graph, chosen)
    assert_same(graph, after, seed)
    assert_same(graph, run_pipeline(after, CPU), seed)


@pytest.mark.parametrize("seed", range(12))
def test_random_passes_in_random_order(seed: int) -> None:
    """Passes that do not need one another may come in any order, and twice."""
    draw = random.Random(seed)
    graph = [kernel_soup, random_layer, random_model][seed % 3](seed + 200)
    passes: list[Pass] = [CleanUp(), Fold(), KVLayout(), Roll(), Hoist()]
    chosen = [draw.choice(passes) for _ in range(draw.randint(1, 6))]
    expand = next(p for p in PIPELINE if p.name == "expand")
    late: list[Pass] = draw.sample([FuseLoops(), FuseEpilogues(), FusePrologues()],
                                   draw.randint(0, 3))
    lowered = Lowered(graph)
    for each in [Roll(), *chosen, expand, *draw.sample(chosen, len(chosen)), *late]:
        lowered = run_pass(each, lowered, CPU)
        if each.name == "fold":
            recipes = lowered.recipes
            assert all(not r.inputs and not r.state for r in recipes.values())
    if sum(p.name == "fold" for p in chosen) == 0:
        assert_same(graph, lowered, seed)


@pytest.mark.parametrize("seed", range(24))
def test_twice_changes_nothing(seed: int) -> None:
    graph = [kernel_soup, random_layer, random_model][seed % 3](seed + 300)
    lowered = run_pipeline(graph, TARGETS[seed % 4])
    again = run_pipeline(lowered.graph, TARGETS[seed % 4])
    assert text(again.graph) == text(lowered.graph)
    assert not again.recipes


def test_tolerances_are_known() -> None:
    assert TOLERANCE["f64"] < TOLERANCE["f32"] < TOLERANCE["bf16"]
