"""Random graphs through the pipeline: what fired where, each graph run once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from passcase import CPU, PLAIN, SINGLE, WHOLE
from random_graphs import random_graph

from graphdsl.passes.base import Target
from graphdsl.passes.catalogue import FUSIONS, groups
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.printer import text

TARGETS = tuple(replace(target, dtypes=frozenset({"f32", "bf16", "f16"}))
                for target in (CPU, WHOLE, PLAIN, SINGLE))
RULES = tuple(dict.fromkeys(rule.name for rule in (*FUSIONS, *groups(CPU))))


def target_of(seed: int) -> Target:
    """The targets in turn."""
    return TARGETS[seed % len(TARGETS)]


def lowered(seed: int) -> Lowered:
    """Random graph `seed` after the pipeline, every pass verified. Raises CheckFailed where one is
    wrong; the graph that went in has to be as it was."""
    graph = random_graph(seed)
    before = text(graph)
    made = run_pipeline(graph, target_of(seed), verify=True)
    assert text(graph) == before, "the passes have changed the graph that they were given"
    return made


@cache
def fired_in(seed: int) -> frozenset[str]:
    """The rules that fire in random graph `seed`."""
    return frozenset(f.rule for report in lowered(seed).report for f in report.fired)


def counted(seeds: Iterable[int]) -> dict[str, int]:
    """In how many of these graphs every rule fires."""
    return dict(Counter(name for seed in seeds for name in fired_in(seed)))
