"""Angles that come from positions are rows of tables that recipes make."""

from __future__ import annotations

import pytest
import torch
from lowercase import GLM, LLAMA

from graphdsl import Layer, Value
from graphdsl.backends.ascend.angles import Tabled, tabled
from graphdsl.backends.ascend.target import target
from graphdsl.errors import GraphError
from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.models import glm, llama
from graphdsl.ops import embedding, merge_heads, rope, rope_angles, split_heads
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.passes.verify import problem_of
from graphdsl.printer import text
from graphdsl.recipes import recipe_inputs, recipe_json, run_recipe
from graphdsl.reference import run

POSITIONS = torch.tensor([[0, 3, 7, -1], [5, 6, 7, 8]], dtype=torch.int32)


class Turned(Layer):
    """Rope of x by angles that the layer computes."""

    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: llama.Config = LLAMA, *, interleaved: bool = False) -> None:
        self.config, self.interleaved = config, interleaved

    def forward(self, x: Value, positions: Value) -> Value:
        cos, sin = rope_angles(positions, rotary_dim=8, theta=100.0)
        y: Value = merge_heads(rope(split_heads(x, 4), cos, sin, interleaved=self.interleaved))
        return y


def _lowered(layer: Layer) -> Lowered:
    return run_pipeline(trace(layer, "f16"), target("910b"))


def _tabled(layer: Layer, longest: int = 16) -> Tabled:
    lowered = _lowered(layer)
    return tabled(lowered.graph, lowered.recipes, longest)


def _params(found: Tabled) -> dict[str, torch.Tensor]:
    return {name: run_recipe(recipe_json(recipe), {}) for name, recipe in found.recipes.items()}


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_graph_with_tables_computes_the_same(interleaved: bool) -> None:
    layer = Turned(interleaved=interleaved)
    graph, found = _lowered(layer).graph, _tabled(layer)
    assert not problem_of(found.graph)
    x = torch.randn(2, 4, 64).half()
    old = {n: run_recipe(recipe_json(r), {}) for n, r in _lowered(layer).recipes.items()}
    expected = run(graph, {"x": x, "positions": POSITIONS}, old)[0]
    ours = run(found.graph, {"x": x, "positions": POSITIONS}, _params(found))[0]
    seen = POSITIONS >= 0
    assert torch.equal(ours[seen], expected[seen])


def test_halves_are_equal_or_pairs_are() -> None:
    for interleaved in (False, True):
        tables = _params(_tabled(Turned(interleaved=interleaved)))
        cos = tables["angles.cos.0"]
        assert cos.shape == (16, 8)
        first, second = (cos[:, ::2], cos[:, 1::2]) if interleaved else cos.chunk(2, 1)
        assert torch.equal(first, second)
        angles = torch.arange(16).unsqueeze(1) * 100.0 ** -(torch.arange(4) / 4)
        assert torch.allclose(first, angles.cos(), atol=1e-5)


def test_frequencies_that_only_angles_read_are_no_params() -> None:
    found = _tabled(Turned())
    assert [p.name for p in found.graph.params] == ["angles.cos.0", "angles.sin.0"]
    assert list(found.recipes) == ["angles.cos.0", "angles.sin.0"]
    assert not any(recipe_inputs(recipe_json(r)) for r in found.recipes.values())


def test_one_table_serves_all_layers_of_a_repeat() -> None:
    for model in (llama.Llama(LLAMA), glm.Glm(GLM)):
        found = _tabled(model)
        assert found.tables == {"angles.cos.0", "angles.sin.0"}
        assert text(found.graph).count("embedding(") == 3
        assert not problem_of(found.graph)


def test_lines_and_rules_are_kept() -> None:
    nodes = [n for n in _tabled(Turned()).graph.nodes if n.name == "embedding"]
    assert {n.loc.file for n in nodes if n.loc} == {__file__}
    assert all(n.origin == ("AngleTable",) for n in nodes)


def test_angles_that_are_given_stay() -> None:
    lowered = _lowered(llama.LlamaLayer(LLAMA))
    found = tabled(lowered.graph, lowered.recipes)
    assert found.graph is lowered.graph
    assert not found.tables


def test_rows_of_a_users_own_table_are_not_taken_for_ours() -> None:
    class Own(llama.LlamaLayer):
        """cos and sin are the two halves of one row."""

        signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32, t[8, 16]:f32"
                     " -> y[batch, tokens, hidden]")

        def forward(self, x: Value, positions: Value, t: Value) -> Value:  # type: ignore[override]
            row = embedding(positions, t)
            y: Value = merge_heads(rope(split_heads(x, 4), row[..., :8], row[..., 8:]))
            return y

    lowered = _lowered(Own(LLAMA))
    found = tabled(lowered.graph, lowered.recipes)
    (node,) = (n for n in found.graph.nodes if n.name == "rope")
    assert found.gathered(node.inputs[1]) is None


def test_angles_of_both_kinds_of_rope_are_refused() -> None:
    class Both(Turned):
        def forward(self, x: Value, positions: Value) -> Value:
            cos, sin = rope_angles(positions, rotary_dim=8, theta=100.0)
            heads = split_heads(x, 4)
            y: Value = merge_heads(rope(heads, cos, sin) + rope(heads, cos, sin, interleaved=True))
            return y

    with pytest.raises(GraphError, match="read by an interleaved rope and by one that is not"):
        _tabled(Both())


def test_the_graph_that_was_given_is_not_changed() -> None:
    lowered = _lowered(Turned())
    before = text(lowered.graph)
    tabled(lowered.graph, lowered.recipes)
    assert text(lowered.graph) == before
    assert isinstance(lowered.graph, Graph)
