"""Random graphs of every kind through the whole pipeline, verified pass by pass: nothing is wrong,
every rule fires, and a broken one is found out. `make fuzz` draws 5000."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import pytest
from fuzzcase import RULES, counted, fired_in, lowered, target_of
from random_graphs import random_graph
from twins import bend

from graphdsl.backends.cpu.backend import CPU
from graphdsl.errors import ToolError
from graphdsl.passes.base import CheckFailed
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text

SAMPLE = range(160)
TRIES = 8
"""Graphs with a broken rule: one alone may have no use for what it makes."""


@pytest.mark.fuzz
def test_graphs_of_every_kind(graph_seeds: range, record_property: Callable[..., None]) -> None:
    record_property("graphs", len(graph_seeds))
    record_property("fired", counted(graph_seeds))
    record_property("rules", RULES)


def test_every_rule_fires() -> None:
    assert set(RULES) <= set(counted(SAMPLE))


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = list(itertools.islice((s for s in SAMPLE if name in fired_in(s)), TRIES))
    bend(monkeypatch, name)
    found = []
    for seed in seeds:
        try:
            lowered(seed)
        except CheckFailed as error:
            found.append(str(error))
            break
    assert any("changes the numbers" in message for message in found), found


@pytest.mark.parametrize("seed", SAMPLE[::8])
def test_the_pipeline_has_nothing_left_to_do(seed: int) -> None:
    once = lowered(seed).graph
    again = run_pipeline(once, target_of(seed))
    assert text(again.graph) == text(once)
    assert not again.recipes


def test_seeds_are_what_is_drawn() -> None:
    assert text(random_graph(7)) == text(random_graph(7))
    assert len(fired_in(3)) > 1


def test_no_compiler_is_at_hand() -> None:
    """Nothing in this folder can call one: PATH is an empty folder."""
    with pytest.raises(ToolError, match="no C"):
        CPU().fingerprint(dict(os.environ))
