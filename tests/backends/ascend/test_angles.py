"""Angles that come from positions are rows of tables that recipes make."""

from __future__ import annotations

import pytest
import torch
from lowercase import GLM, LLAMA

from graphdsl import Layer, Value
from graphdsl.backends.ascend.angles import AngleTable, gathered
from graphdsl.backends.ascend.target import target
from graphdsl.errors import GraphError
from graphdsl.layer import trace
from graphdsl.models import glm, llama
from graphdsl.ops import embedding, merge_heads, rope, rope_angles, split_heads
from graphdsl.passes.pipeline import PIPELINE, Lowered, run_pipeline
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


def _before(layer: Layer) -> Lowered:
    return run_pipeline(trace(layer, "f16"), target("910b"), passes=PIPELINE)


def _tabled(layer: Layer, rows: int = 16, verify: bool = False) -> Lowered:
    options = {"angle_table": {"rows": str(rows)}}
    return run_pipeline(trace(layer, "f16"), target("910b"), options, verify)


def _params(lowered: Lowered) -> dict[str, torch.Tensor]:
    return {p.name: run_recipe(recipe_json(lowered.recipes[p.name]), {})
            for p in lowered.graph.params if p.name in lowered.recipes}


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_graph_with_tables_computes_the_same(interleaved: bool) -> None:
    layer = Turned(interleaved=interleaved)
    before, found = _before(layer), _tabled(layer, verify=True)
    x = torch.randn(2, 4, 64).half()
    expected = run(before.graph, {"x": x, "positions": POSITIONS}, _params(before))[0]
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
    made = [recipe_json(found.recipes[p.name]) for p in found.graph.params]
    assert not any(map(recipe_inputs, made))


def test_one_table_serves_all_layers_of_a_repeat() -> None:
    for model in (llama.Llama(LLAMA), glm.Glm(GLM)):
        found = _tabled(model)
        tables = {p.name for p in found.graph.params if p.name.startswith("angles.")}
        assert tables == {"angles.cos.0", "angles.sin.0"}
        assert text(found.graph).count("embedding(") == 3


def test_lines_and_rules_are_kept() -> None:
    nodes = [n for n in _tabled(Turned()).graph.nodes if n.name == "embedding"]
    assert {n.loc.file for n in nodes if n.loc} == {__file__}
    assert all(n.origin == ("AngleTable",) for n in nodes)


def test_angles_that_are_given_stay() -> None:
    graph = _before(llama.LlamaLayer(LLAMA)).graph
    result = AngleTable().run(graph, target("910b"))
    assert result.graph is graph
    assert not result.fired


def test_rows_of_a_users_own_table_are_not_taken_for_ours() -> None:
    class Own(llama.LlamaLayer):
        """cos and sin are the two halves of one row."""

        signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32, t[8, 16]:f32"
                     " -> y[batch, tokens, hidden]")

        def forward(self, x: Value, positions: Value, t: Value) -> Value:  # type: ignore[override]
            row = embedding(positions, t)
            y: Value = merge_heads(rope(split_heads(x, 4), row[..., :8], row[..., 8:]))
            return y

    (node,) = (n for n in _tabled(Own(LLAMA)).graph.nodes if n.name == "rope")
    assert gathered(node.inputs[1]) is None


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
    graph = _before(Turned()).graph
    before = text(graph)
    assert AngleTable().run(graph, target("910b")).fired
    assert text(graph) == before


def test_running_it_twice_changes_nothing() -> None:
    found = _tabled(llama.Llama(LLAMA))
    assert AngleTable().run(found.graph, target("910b")).graph is found.graph


def test_what_it_did_is_reported_at_the_users_line() -> None:
    (report,) = (r for r in _tabled(Turned()).report if r.name == "angle_table")
    assert [str(f).partition(" at ")[0] for f in report.fired] == ["AngleTable", "AngleTable"]
    assert {f.loc.file for f in report.fired if f.loc} == {__file__}


@pytest.mark.parametrize("rows", [0, -3, 1 << 21])
def test_numbers_of_rows_that_no_cache_has_are_refused(rows: int) -> None:
    with pytest.raises(GraphError, match=f"angle_table:rows={rows}: wanted 1 to 1048576") as caught:
        _tabled(Turned(), rows=rows)
    assert caught.value.hint == "the default is 32768"
