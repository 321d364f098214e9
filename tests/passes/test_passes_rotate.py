"""Norms that move across the border of the turns of a repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from passcase import CPU, WHOLE, assert_same, line_of, names

from graphdsl.ir import Graph, Node, Value
from graphdsl.layer import Layer, Model, Param, trace
from graphdsl.models.llama import Config, Llama
from graphdsl.ops import layer_norm, linear, rms_norm, take_rows, tanh
from graphdsl.passes.base import Missed
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.printer import text


@dataclass(frozen=True)
class Toy:
    """`ending` says what follows the layers, `body` what a layer is like."""

    hidden: int = 8
    layers: int = 3
    period: int = 1
    body: str = "plain"
    ending: str = "norm"


class ToyLayer(Layer):
    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config: Toy, eps: float) -> None:
        self.config, self.eps = config, eps
        self.norm, self.other = Param(config.hidden), Param(config.hidden)
        self.w = Param(config.hidden, config.hidden)

    def forward(self, x: Value) -> Value:
        body = self.config.body
        weight = self.norm + 1.0 if body == "one plus" else self.norm
        if body == "given":
            weight = linear(x, self.w)[0, 0]  # made
        if body == "layer_norm":
            h = layer_norm(x, weight, self.other, eps=self.eps)
        else:
            h = rms_norm(x, weight, eps=self.eps)
        if body == "two":
            h = h + rms_norm(x, self.other, eps=self.eps)  # second
        r = tanh(linear(h, self.w))
        y: Value = tanh(x + r) if body == "no sum" else x + r  # result
        return y


class ToyModel(Model):
    signature = ("x[batch, tokens, hidden], rows[batch, outputs]:i32"
                 " -> y[batch, outputs, hidden], z[batch, tokens, hidden]")

    def __init__(self, config: Toy) -> None:
        c = self.config = config
        self.layers = [ToyLayer(c, 1e-5 * (1 + i % c.period)) for i in range(c.layers)]
        self.norm, self.bias = Param(c.hidden), Param(c.hidden)

    def last(self, x: Value, weight: Value, eps: float) -> Value:
        if self.config.body == "layer_norm":
            y: Value = layer_norm(x, weight, self.bias, eps=eps)
            return y
        z: Value = rms_norm(x, weight, eps=eps)
        return z

    def forward(self, x: Value, rows: Value) -> tuple[Value, Value]:
        ending = self.config.ending
        for layer in self.layers:
            x = layer(x)  # layers
        if ending == "nothing":
            return take_rows(x, rows), x
        weight = self.norm + 1.0 if self.config.body == "one plus" else self.norm
        eps = 1e-3 if ending == "eps" else 1e-5
        if ending == "rows":
            return self.last(take_rows(x, rows), weight, eps), x
        h = self.last(x, weight, eps)
        return take_rows(h, rows), h


def lowered_of(graph: Graph) -> Lowered:
    lowered = run_pipeline(graph, WHOLE, verify=True)
    assert_same(graph, lowered, seed=1)
    return lowered


def turn_of(lowered: Lowered) -> Node:
    return next(n for n in lowered.graph.nodes if n.name == "repeat")


def misses(lowered: Lowered) -> list[Missed]:
    return [m for report in lowered.report if report.name == "rotate" for m in report.missed]


def fired(lowered: Lowered) -> list[str]:
    return [f.rule for report in lowered.report for f in report.fired]


@pytest.mark.parametrize("ending", ["norm", "rows"])
@pytest.mark.parametrize("body", ["plain", "one plus"])
def test_the_last_turn_makes_the_norm_that_follows(body: str, ending: str) -> None:
    lowered = lowered_of(trace(ToyModel(Toy(body=body, ending=ending))))
    turn = turn_of(lowered)
    assert turn.attr["carried"] == 2
    assert turn.body
    assert names(turn.body).count("add_rms_norm") == 1
    assert "rms_norm" not in names(turn.body)
    assert names(lowered.graph).count("rms_norm") == 1
    assert fired(lowered).count("RotateRepeat") == 1


@pytest.mark.parametrize("ending", ["eps", "nothing"])
def test_a_last_norm_of_another_kind_stays(ending: str) -> None:
    """Every turn is the same; what the last one makes beyond its sum is not read."""
    lowered = lowered_of(trace(ToyModel(Toy(ending=ending))))
    turn = turn_of(lowered)
    assert turn.attr["carried"] == 2
    assert turn.outputs[1] not in lowered.graph.users
    assert names(lowered.graph).count("rms_norm") == (2 if ending == "eps" else 1)


def test_turns_of_several_layers() -> None:
    """Inside of a turn the border is an ordinary sum and norm; the turns meet as before."""
    lowered = lowered_of(trace(ToyModel(Toy(layers=6, period=2))))
    turn = turn_of(lowered)
    assert turn.attr["turns"] == 3
    assert turn.body
    assert names(turn.body).count("add_rms_norm") == 2
    assert "rms_norm" not in names(turn.body)


@pytest.mark.parametrize(("body", "reason", "marker"), [
    ("no sum", "what the Layer returns is made by tanh, wanted a sum", "result"),
    ("two", "2 norms read x", "second"),
    ("given", "its weight is not made of the Layer's Params", "")])
def test_refusals(body: str, reason: str, marker: str) -> None:
    lowered = lowered_of(trace(ToyModel(Toy(body=body))))
    assert "RotateRepeat" not in fired(lowered)
    missed = misses(lowered)
    assert len(missed) == 1
    assert reason in missed[0].reason
    assert missed[0].loc == line_of("layers", __file__)
    if marker:
        assert missed[0].at == line_of(marker, __file__)


def test_what_does_not_pay_is_left() -> None:
    """A norm that the target does not fuse with a sum, and a target that fuses none."""
    without = replace(WHOLE, takes=WHOLE.takes - {"add_layer_norm"})
    for body, target in (("layer_norm", without), ("plain", CPU)):
        lowered = run_pipeline(trace(ToyModel(Toy(body=body))), target, verify=True)
        assert "RotateRepeat" not in fired(lowered)
        assert not misses(lowered)
        assert turn_of(lowered).attr["carried"] == 1


def test_golden_model(golden: Callable[[str, str], None]) -> None:
    """All turns share one body though the first and the last differ from those between."""
    config = Config(vocab=10, hidden=16, layers=3, heads=4, kv_heads=2, head_dim=4, ffn=24)
    lowered = lowered_of(trace(Llama(config)))
    golden("passes/rotate_model.txt", text(lowered.graph, locations=False))


@pytest.mark.parametrize("ending", ["norm", "rows", "eps"])
def test_layer_norms(ending: str) -> None:
    """With a bias that every turn has of its own."""
    target = replace(WHOLE, takes=WHOLE.takes | {"layer_norm", "add_layer_norm"})
    graph = trace(ToyModel(Toy(body="layer_norm", ending=ending)))
    lowered = run_pipeline(graph, target, verify=True)
    assert_same(graph, lowered, seed=1)
    assert fired(lowered).count("RotateRepeat") == 1
    turn = turn_of(lowered)
    assert turn.body
    assert "add_layer_norm" in names(turn.body)
    assert names(lowered.graph).count("layer_norm") == 1 + (ending == "eps")
