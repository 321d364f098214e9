"""Activations in all the ways in which they are written, and why one is not recognised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from passcase import CPU, assert_same, graph_of, leaf, line_of, names
from rulecase import golden_text, made, only_miss

from graphdsl import ops
from graphdsl.ir import Dim, Value
from graphdsl.ops.linear import linear
from graphdsl.ops.math import cast, erf, exp, maximum, minimum, neg, pow, sub, tanh, where
from graphdsl.passes import activation
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.pipeline import run_pipeline

Golden = Callable[[str, str], None]
Form = Callable[[Value], Value]
TOKENS = Dim("tokens")
X, UP = leaf("x", TOKENS, 8), leaf("up", TOKENS, 8)
ROOT2, HALF_ROOT = math.sqrt(2.0), math.sqrt(0.5)
S, A = math.sqrt(2.0 / math.pi), 0.044715


@pytest.mark.parametrize("rule", activation.RULES, ids=lambda r: r.name)
def test_golden(rule: Any, golden: Golden) -> None:
    golden(f"passes/activation/{rule.name}.txt", golden_text(rule))


ERF: dict[str, Form] = {
    "0.5 * x * (1 + erf(x / sqrt(2)))": lambda x: 0.5 * x * (1.0 + erf(x / ROOT2)),
    "x * 0.5 * (1 + erf(x / sqrt(2)))": lambda x: x * 0.5 * (1.0 + erf(x / ROOT2)),
    "0.5 * (x * (erf(x * sqrt(1/2)) + 1))": lambda x: 0.5 * (x * (erf(x * HALF_ROOT) + 1.0)),
    "x * (0.5 * (1 + erf))": lambda x: x * (0.5 * (1.0 + erf(HALF_ROOT * x))),
    "x * (1 + erf) / 2": lambda x: x * (1.0 + erf(x * HALF_ROOT)) / 2.0,
    "x / 2 * (1 + erf)": lambda x: (x / 2.0) * (1.0 + erf(x * HALF_ROOT)),
    "x * (0.5 + 0.5 * erf)": lambda x: x * (0.5 + 0.5 * erf(x / ROOT2)),
    "0.5 * x + 0.5 * (x * erf)": lambda x: 0.5 * x + 0.5 * (x * erf(x / ROOT2)),
    "0.5 * (x + x * erf)": lambda x: 0.5 * (x + x * erf(x / ROOT2)),
    "ten digits": lambda x: x * 0.5 * (1.0 + erf(x * 0.70710678119)),
}

TANH: dict[str, Form] = {
    "0.5 * x * (1 + tanh(s * (x + a * x ** 3)))":
        lambda x: 0.5 * x * (1.0 + tanh(S * (x + A * pow(x, 3.0)))),
    "a * (x * x * x)": lambda x: 0.5 * x * (1.0 + tanh(S * (x + A * (x * x * x)))),
    "a * x * x * x": lambda x: 0.5 * x * (1.0 + tanh(S * (x + A * x * x * x))),
    "a * x * x ** 2": lambda x: 0.5 * x * (1.0 + tanh(S * (x + (A * x) * pow(x, 2.0)))),
    "x * s * (1 + a * x * x)": lambda x: 0.5 * x * (1.0 + tanh(x * S * (1.0 + A * x * x))),
    "s * x * (1 + a * x ** 2)":
        lambda x: x * 0.5 * (tanh(S * x * (1.0 + A * pow(x, 2.0))) + 1.0),
    "s * (x * (1 + a * (x * x)))":
        lambda x: 0.5 * (x * (1.0 + tanh(S * (x * (1.0 + A * (x * x)))))),
    "s * x + s * a * x ** 3": lambda x: x * (0.5 + 0.5 * tanh(S * x + (S * A) * pow(x, 3.0))),
    "x - (-a) * x ** 3": lambda x: x * (1.0 + tanh(S * sub(x, neg(A * (x * x * x))))) / 2.0,
    "0.7978845608": lambda x: 0.5 * x * (1.0 + tanh(0.7978845608 * (x + A * pow(x, 3.0)))),
}


@pytest.mark.parametrize("form", ERF)
def test_gelu(form: str) -> None:
    assert made(graph_of(ERF[form](X))) == ["gelu"]
    assert made(graph_of(UP * ERF[form](X))) == ["geglu"]


@pytest.mark.parametrize("form", TANH)
def test_gelu_tanh(form: str) -> None:
    assert made(graph_of(TANH[form](X))) == ["gelu_tanh"]
    assert made(graph_of(TANH[form](X) * UP)) == ["geglu_tanh"]


SIGMOID: dict[str, Form] = {
    "op": ops.sigmoid,
    "1 / (1 + exp(-x))": lambda x: 1.0 / (1.0 + exp(-x)),
    "1 / (exp(-1 * x) + 1)": lambda x: 1.0 / (exp(-1.0 * x) + 1.0),
    "(1 + exp(-x)) ** -1": lambda x: pow(1.0 + exp(-x), -1.0)}

SILU: dict[str, Form] = {
    "x / (1 + exp(-x))": lambda x: x / (1.0 + exp(-x)),
    **{f"x * {name}": lambda x, form=form: x * form(x) for name, form in SIGMOID.items()},
    **{f"{name} * x": lambda x, form=form: form(x) * x for name, form in SIGMOID.items()}}


@pytest.mark.parametrize("form", SIGMOID)
def test_sigmoid(form: str) -> None:
    assert made(graph_of(SIGMOID[form](X))) == ["sigmoid"]


@pytest.mark.parametrize("form", SILU)
def test_silu(form: str) -> None:
    assert made(graph_of(SILU[form](X))) == ["silu"]
    assert made(graph_of(SILU[form](X) * UP)) == ["swiglu"]
    assert made(graph_of(UP * SILU[form](X))) == ["swiglu"]


@pytest.mark.parametrize("form", [
    lambda x: maximum(x, 0.0), lambda x: maximum(0.0, x), lambda x: where(x < 0.0, 0.0, x),
    lambda x: where(x <= 0.0, 0.0, x), lambda x: where(ops.logical_not(x < 0.0), x, 0.0)])
def test_relu(form: Form) -> None:
    assert made(graph_of(form(X))) == ["relu"]


@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "gelu_tanh", "relu"])
def test_in_f32(name: str) -> None:
    """What is computed in f32 and rounded is what the Operation does by itself."""
    half = leaf("x", TOKENS, 8, dtype="bf16")
    form = {"sigmoid": SIGMOID["1 / (1 + exp(-x))"], "silu": SILU["x / (1 + exp(-x))"],
            "gelu": ERF["x / 2 * (1 + erf)"], "gelu_tanh": TANH["a * x * x * x"],
            "relu": lambda x: maximum(x, 0.0)}[name]
    assert made(graph_of(cast(form(cast(half, dtype="f32")), dtype="bf16"))) == [name]


def test_gelu_of_what_is_computed() -> None:
    """What x is made of is no part of the polynomial, nor is another activation."""
    graph = graph_of(ERF["x * (1 + erf) / 2"](X * UP + UP))
    assert made(graph) == ["mul", "add", "gelu"]
    assert made(graph_of(ERF["x / 2 * (1 + erf)"](erf(X)))) == ["erf", "gelu"]
    assert made(graph_of(TANH["a * x * x * x"](TANH["a * x * x * x"](X)))) == ["gelu_tanh"] * 2


@pytest.mark.parametrize("form", [*ERF.values(), *TANH.values(), *SILU.values()])
def test_twice_changes_nothing(form: Form) -> None:
    graph = graph_of(form(X) * UP)
    after, _, _ = apply_rules(graph, activation.RULES)
    assert not apply_rules(after, activation.RULES)[1]
    assert_same(graph, after)


def test_opened_activations_are_not_made_again() -> None:
    graph = graph_of(ops.swiglu(ops.gelu(X), ops.geglu_tanh(ops.gelu_tanh(X), ops.relu(UP))))
    lowered = run_pipeline(graph, CPU, verify=True)
    made_again = {r.name for r in activation.RULES}
    assert not {f.rule for r in lowered.report for f in r.fired} & made_again
    assert names(lowered.graph) == ["loop"]


def test_gated_maths_is_an_epilogue_on_cpu() -> None:
    x = leaf("x", TOKENS, 8)
    gate, up = (leaf(n, 16, 8, kind="param") for n in ("gate", "up"))
    forms = [*ERF.values(), *TANH.values(), *SILU.values()]
    found = {tuple(names(run_pipeline(graph_of(form(linear(x, gate)) * linear(x, up)), CPU).graph))
             for form in forms}
    assert found == {("matmul_epilogue",)}


def test_factor_of_the_whole() -> None:
    curve = erf(X * HALF_ROOT)  # curve
    whole = 0.4 * X * (1.0 + curve)  # whole
    miss = only_miss(graph_of(whole), activation.Gelu())
    assert miss.reason == "it is not x * (1 + erf) / 2"
    assert (miss.loc, miss.at) == (line_of("whole", __file__), line_of("curve", __file__))


@pytest.mark.parametrize("factor", [0.7, 0.70710678])
def test_factor_in_erf(factor: float) -> None:
    """A number of eight digits is another number in f64."""
    curve = erf(X * factor)  # factor
    miss = only_miss(graph_of(0.5 * X * (1.0 + curve)), activation.Gelu())
    assert miss.reason == "the argument of erf is not that of gelu"
    assert miss.at == line_of("factor", __file__)


@pytest.mark.parametrize("argument", [
    lambda x: S * (x + 0.0447 * (x * x * x)), lambda x: 0.8 * (x + A * (x * x * x)),
    lambda x: S * (x + A * (x * x)), lambda x: S * x, lambda x: S * (UP + A * (UP * UP * UP)),
    lambda x: S * (x + A * (x * x * x)) + 1.0, lambda x: S / (x + A * (x * x * x))])
def test_argument_of_tanh(argument: Form) -> None:
    curve = tanh(argument(X))  # argument
    miss = only_miss(graph_of(0.5 * X * (1.0 + curve)), activation.GeluTanh())
    assert miss.reason == "the argument of tanh is not that of gelu"
    assert miss.at == line_of("argument", __file__)


def test_curve_that_is_read_twice() -> None:
    curve = erf(X * HALF_ROOT)  # twice
    miss = only_miss(graph_of(0.5 * X * (1.0 + curve), curve), activation.Gelu())
    assert miss.reason == "the result of erf is an output too"
    assert miss.at == line_of("twice", __file__)


def test_ordinary_tanh_is_no_near_miss() -> None:
    graph = graph_of(tanh(X) * UP + X, erf(X) * (1.0 + UP))
    assert apply_rules(graph, activation.RULES)[1:] == ((), ())


def test_sigmoid_of_something_else() -> None:
    other = ops.sigmoid(UP)
    graph = graph_of(X * other)
    miss = only_miss(graph, activation.Silu())
    assert miss.reason == "x would have to be two different values"


def test_sigmoid_that_is_read_twice() -> None:
    gate = ops.sigmoid(X)  # gate
    miss = only_miss(graph_of(X * gate, gate), activation.Silu())
    assert miss.reason == "the result of sigmoid is an output too"
    assert miss.at == line_of("gate", __file__)


def test_zero_where_x_is_not_above_zero_is_left() -> None:
    """It is 0 where x is nan, and relu is nan there."""
    assert made(graph_of(where(X > 0.0, X, 0.0))) == ["greater", "where"]


def test_of_whole_numbers_is_left() -> None:
    ids = leaf("ids", TOKENS, dtype="i32")
    assert apply_rules(graph_of(maximum(ids, 0)), [activation.Relu()])[1:] == ((), ())
    assert apply_rules(graph_of(minimum(X, 0.0)), activation.RULES)[1:] == ((), ())


def test_rounded_to_another_dtype() -> None:
    half = leaf("x", TOKENS, 8, dtype="bf16")
    act = ops.silu(cast(half, dtype="f32"))
    rounded = cast(act, dtype="f16")  # rounded
    miss = only_miss(graph_of(rounded), activation.SiluOfCast())
    assert miss.reason == "it would make bf16[tokens, 8] of f16[tokens, 8]"
    assert miss.loc == line_of("rounded", __file__)


def test_gate_and_up_of_two_shapes() -> None:
    gated = ops.gelu_tanh(X) * leaf("row", 8)  # gated
    miss = only_miss(graph_of(gated), activation.GeluTanhMul())
    assert miss.reason.startswith("what it would make does not fit: geglu_tanh: up is f32[8]")
    assert miss.loc == line_of("gated", __file__)
