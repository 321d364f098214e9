"""Passes that a target brings: their place, options, reports and verification."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from passcase import CPU, graph_of

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, TensorType, Value
from graphdsl.ops import linear
from graphdsl.passes.base import CheckFailed, Fired, Result, Target
from graphdsl.passes.pipeline import PIPELINE, Lowered, passes_for, run_pipeline
from graphdsl.passes.rewrite import substitute
from graphdsl.recipes import recipe_inputs, recipe_json

X = Value(TensorType((2, 4), "f32"), name="x")
W, V = (Value(TensorType((4, 4), "f32"), name=name, kind="param") for name in "wv")


@dataclass(frozen=True)
class Scaled:
    """Every param is replaced by one that is `by` times itself, made when weights are loaded."""

    name: ClassVar[str] = "scaled"
    rules: ClassVar[tuple[str, ...]] = ("Scaled",)
    by: int = 1

    def run(self, graph: Graph, target: Target) -> Result:
        new = {p: replace(p, name=f"{p.name}.scaled") for p in graph.params}
        recipes = {new[p].name: Graph(new[p].name, (), (p,), (), (p * float(self.by),))
                   for p in graph.params}
        changed = substitute(graph, new, params=tuple(new.values()))
        return Result(changed, (Fired("Scaled", None),), (), recipes)


WITH = replace(CPU, passes=(Scaled(),))


def _graph() -> Graph:
    return graph_of(linear(X, W + V))


def test_they_come_before_the_last_of_the_common_ones() -> None:
    assert passes_for(CPU) == PIPELINE
    assert passes_for(WITH) == (*PIPELINE[:-1], Scaled(), PIPELINE[-1])
    seen: list[str] = []
    lowered = run_pipeline(_graph(), WITH, observe=lambda name, _: seen.append(name))
    assert seen == [r.name for r in lowered.report] == [p.name for p in passes_for(WITH)]
    assert [str(f) for f in lowered.report[-2].fired] == ["Scaled"]


def test_they_have_options_and_the_hint_names_them() -> None:
    with pytest.raises(GraphError, match="no pass scale") as caught:
        run_pipeline(_graph(), WITH, {"scale": {"by": "2"}})
    assert caught.value.hint.endswith("scaled, memory")
    with pytest.raises(GraphError, match="no pass scaled"):
        run_pipeline(_graph(), CPU, {"scaled": {"by": "1"}})
    with pytest.raises(GraphError, match="'x' is not a whole number"):
        run_pipeline(_graph(), WITH, {"scaled": {"by": "x"}})
    run_pipeline(_graph(), WITH, {"scaled": {"by": "1"}}, verify=True)


def test_they_are_verified() -> None:
    with pytest.raises(CheckFailed, match="pass scaled changes the numbers"):
        run_pipeline(_graph(), WITH, {"scaled": {"by": "2"}}, verify=True)


def test_recipes_of_params_that_a_pass_has_made_read_the_checkpoint() -> None:
    lowered: Lowered = run_pipeline(_graph(), WITH, verify=True)
    (param,) = lowered.graph.params
    assert param.name.endswith(".scaled")
    recipe = lowered.recipes[param.name]
    assert recipe_inputs(recipe_json(recipe)) == {"w", "v"}
    assert {p.name for p in recipe.params} == {"w", "v"}


def test_a_recipe_of_the_same_param_twice_has_it_once() -> None:
    @dataclass(frozen=True)
    class Both(Scaled):
        """The folded param and one of the checkpoint's, in one recipe."""

        def run(self, graph: Graph, target: Target) -> Result:
            (folded,) = graph.params
            own = replace(W)
            new = replace(folded, name="both")
            recipe = Graph("both", (), (folded, own), (), (folded + own,))
            return Result(substitute(graph, {folded: new}, params=(new,)), (), (), {"both": recipe})

    recipe = run_pipeline(_graph(), replace(CPU, passes=(Both(),))).recipes["both"]
    assert sorted(p.name for p in recipe.params) == ["v", "w"]
    assert {v for n in recipe.nodes for v in n.inputs if v.node is None} == set(recipe.params)
