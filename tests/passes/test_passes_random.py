"""Random graphs: what the passes make of them computes the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from fuzzcase import target_of
from passcase import CPU, assert_same
from random_graphs import kernel_soup, plain_soup, random_graph, random_layer, random_model

from graphdsl.ir import Graph
from graphdsl.layout import ORDERS
from graphdsl.passes import expand
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
from graphdsl.passes.samples import reference_outputs, samples, without_padding
from graphdsl.passes.verify import problem_of
from graphdsl.printer import text
from graphdsl.reference import TOLERANCE, error_of


@pytest.mark.parametrize("make", [kernel_soup, plain_soup, random_layer])
@pytest.mark.parametrize("seed", range(12))
def test_rounding_is_all_that_f32_adds(seed: int, make: Callable[[int], Graph]) -> None:
    graph = make(seed + 50)
    lowered = run_pipeline(graph, target_of(seed))
    given = samples(graph, seed)
    wanted = without_padding(graph, given, reference_outputs(graph, given))
    found = without_padding(graph, given, reference_outputs(lowered.graph, given, lowered.recipes,
                                                            exact=False))
    for a, b in zip(found, wanted, strict=True):
        assert error_of(a, b) <= 0.02


@pytest.mark.fuzz
def test_some_rules_in_any_order(order_seeds: range, monkeypatch: pytest.MonkeyPatch,
                                 record_property: Callable[..., None]) -> None:
    """Any of the rules, tried in any order at every level, give the same numbers."""
    record_property("subsets and orders of rules", len(order_seeds))
    for seed in order_seeds:
        draw = random.Random(seed)
        chosen = tuple(draw.sample(FUSIONS, draw.randint(1, len(FUSIONS))))
        graph = random_graph(10_000 + seed)
        after, _, _ = apply_rules(graph, (*chosen, *groups(target_of(seed))))
        assert_same(graph, after, seed)
        monkeypatch.setattr(expand, "FUSIONS", chosen)
        run_pipeline(graph, target_of(seed), verify=True)


@pytest.mark.parametrize("seed", range(3, 160, 16))
def test_a_rule_alone_comes_to_an_end(seed: int) -> None:
    """Every rule leaves nothing for itself to do, and the graph that it was given as it was."""
    graph = random_graph(seed)
    before = text(graph)
    for rule in (*FUSIONS, *groups(target_of(seed))):
        after, fired, _ = apply_rules(graph, [rule])
        if fired:
            assert not problem_of(after)
            assert not apply_rules(after, [rule])[1], rule.name
    assert text(graph) == before


@pytest.mark.parametrize("seed", range(12))
def test_random_passes_in_random_order(seed: int) -> None:
    """Passes that do not need one another may come in any order, and twice."""
    draw = random.Random(seed)
    graph = [kernel_soup, random_layer, random_model][seed % 3](seed + 200)
    layout = KVLayout(ORDERS[seed % 3], ("contiguous", "paged")[seed // 3 % 2], None,
                      ("", "int8")[seed // 6])
    passes: list[Pass] = [CleanUp(), Fold(), layout, Roll(), Hoist()]
    chosen = [draw.choice(passes) for _ in range(draw.randint(1, 6))]
    opening = next(p for p in PIPELINE if p.name == "expand")
    late: list[Pass] = draw.sample([FuseLoops(), FuseEpilogues(), FusePrologues()],
                                   draw.randint(0, 3))
    lowered = Lowered(graph)
    for each in [Roll(), *chosen, opening, *draw.sample(chosen, len(chosen)), *late]:
        lowered = run_pass(each, lowered, CPU)
        if each.name == "fold":
            recipes = lowered.recipes
            assert all(not r.inputs and not r.state for r in recipes.values())
    if sum(p.name == "fold" for p in chosen) == 0:
        assert_same(graph, lowered, seed)


def test_tolerances_are_known() -> None:
    assert TOLERANCE["f64"] < TOLERANCE["f32"] < TOLERANCE["bf16"]
