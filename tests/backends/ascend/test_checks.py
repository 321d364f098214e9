"""Graphs that ATB refuses are refused in Python, with the user's line; right ones are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from wrong_cases import OURS, RIGHT, RIGHT_310P, WRONG
from wrong_graphs import Wrong, linear

from graphdsl.backends.ascend.checks import check_graph
from graphdsl.errors import GraphError, Loc


@pytest.mark.parametrize("name", RIGHT)
def test_right(name: str) -> None:
    check_graph(RIGHT[name], "910b")


@pytest.mark.parametrize("name", RIGHT_310P)
def test_right_on_310p(name: str) -> None:
    check_graph(RIGHT_310P[name], "310p")


@pytest.mark.parametrize("wrong", [*WRONG, *OURS], ids=lambda wrong: wrong.name)
def test_wrong(wrong: Wrong) -> None:
    with pytest.raises(GraphError) as found:
        check_graph(wrong.graph, wrong.soc)
    for part in wrong.parts:
        assert part in str(found.value)
    lines = {node.loc for node in wrong.graph.nodes}
    assert found.value.loc in (lines or {None})


def test_names_are_those_of_one_case_each() -> None:
    names = [wrong.name for wrong in (*WRONG, *OURS)]
    assert len(set(names)) == len(names)
    assert len(WRONG) >= 60


def test_the_whole_sentence() -> None:
    with pytest.raises(GraphError) as found:
        check_graph(linear(bias=None, hasBias=True), "910b")
    assert str(found.value) == "layer.py:7: ATB's Linear: 2 inputs, wanted 3: x, w, bias"
    assert found.value.loc == Loc("layer.py", 7)


def test_an_unknown_soc() -> None:
    with pytest.raises(GraphError, match=r"no SoC 910a\n  hint: SoCs: 910b, 310p"):
        check_graph(replace(linear()), "910a")
