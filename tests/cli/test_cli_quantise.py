"""Quantised weights from the command line and from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from clicase import Cli

import graphdsl
from graphdsl.errors import GraphError
from graphdsl.quant import Quant, round_to_nearest
from graphdsl.source import load_source

LAYER = '''\
from dataclasses import dataclass

from graphdsl import Layer, Param
from graphdsl.ops import linear, silu


@dataclass(frozen=True)
class Config:
    hidden: int = 64


class Gate(Layer):
    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config=Config()):
        self.config = config
        self.w = Param(48, config.hidden)
        self.out = Param(config.hidden, 48)
        self.bias = Param(config.hidden)

    def forward(self, x):
        return x + linear(silu(linear(x, self.w)), self.out, self.bias)
'''


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(LAYER)


def test_formats_are_a_part_of_types(cli: Cli) -> None:
    traced = cli("show", "layer.py", "--quantize", "int4:16+offset").out
    assert "param %w : f32[48, 64]@int4:16+offset" in traced
    assert "param %bias : f32[64]\n" in traced
    after = cli("show", "layer.py", "--quantize", "int4", "--act", "int8", "--after", "quantise")
    assert "param %w : f32[48, 64]@int4:32+offset*int8" in after.out
    assert "param %out : f32[64, 48]\n" in after.out


def test_explain_says_what_is_quantised_and_what_is_not(cli: Cli) -> None:
    lines = cli("explain", "layer.py", "--quantize", "int4", "--rule", "Quantise").out.splitlines()
    assert "  fired   Quantise at layer.py:22 (w, int4:32+offset) [quantise]" in lines
    nearly = next(line for line in lines if line.startswith("  missed"))
    assert "out: k is 48, no multiple of the group of 32" in nearly
    assert lines[-1] == "Quantise fired once, nearly once"


def test_build_says_how_many(cli: Cli) -> None:
    out = cli("build", "layer.py", "--quantize", "int4", "--emit-only").out
    assert ("quantise 1 of 2 weights: int4:32+offset; out: k is 48, no multiple of the group of 32"
            in out.splitlines())
    assert "quantise" not in cli("build", "layer.py", "--emit-only").out


@pytest.mark.parametrize("argv", [
    "--quantize int4:16 --dtype bf16", "--quantize int8 --act int8",
    pytest.param("--quantize int4:16+offset --tokens 9", marks=pytest.mark.full)])
def test_run_agrees_with_the_dequantised_weights(argv: str, cli: Cli) -> None:
    result = cli("run", "layer.py", *argv.split())
    assert result.code == 0
    wanted = "0.025" if "--act" in argv else "0.02" if "bf16" in argv else "2e-05"
    assert f"(tolerance {wanted})" in result.out


@pytest.mark.parametrize(("argv", "message"), [
    ("--quantize int5", "--quantize int5: this is no format\n  hint: formats: int8, int4"),
    ("--quantize file", "--quantize file: this is no format"),
    ("--quantize int8 --act f16", "--act f16: activations of this layer are f32\n"
     "  hint: --act f32 or --act int8"),
    ("--act int8", "--act int8 without --quantize"),
    ("--quantize int8 --backend ascend", "the ascend backend has no quantised weights\n"
     "  hint: leave --quantize")])
def test_refusals(argv: str, message: str, cli: Cli) -> None:
    result = cli("build", "layer.py", *argv.split())
    assert result.code == 2
    assert message in result.err


def test_python(here: Path) -> None:
    gate = load_source(here / "layer.py", {}, None).layer
    assert gate is not None
    weights = {"w": torch.randn(48, 64) / 8, "out": torch.randn(64, 48) / 7,
               "bias": torch.randn(64)}
    operator = graphdsl.build(gate, quantize="int8:16")
    x = torch.randn(2, 3, 64)
    first = operator.bind(weights)(x)
    quantised = {n: round_to_nearest(weights[n], Quant(8, 16)) for n in ("w", "out")}
    assert torch.equal(operator.bind({**weights, **quantised})(x), first)
    known = operator.dequantised(weights)
    wanted = x + torch.nn.functional.linear(torch.nn.functional.silu(x @ known["w"].T),
                                            known["out"], known["bias"])
    torch.testing.assert_close(first, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(GraphError, match="the ascend backend has no quantised weights"):
        graphdsl.build(gate, backend="ascend", quantize="int8")
