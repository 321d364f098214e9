"""Formats of quantised weights, rounding into them, and joining what is in them."""

from __future__ import annotations

import itertools

import pytest
import torch

from graphdsl.errors import GraphError
from graphdsl.quant import Quant, Quantised, asked, common, concat_rows, round_to_nearest

TEXTS = ("int8", "int8:32", "int8:16/f32", "int8+offset", "int4:32", "int4:128+offset",
         "int4:64/f32", "int4:16+offset/f32", "int4:32*int8", "int8:32+offset/f32*int8")


def weight(n: int = 6, k: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) / 16


@pytest.mark.parametrize("text", TEXTS)
def test_a_format_is_its_text(text: str) -> None:
    assert str(Quant.parse(text)) == text


@pytest.mark.parametrize("text", ["", "int5", "int4:33", "int4:", "int8/f32", "int4:32/f16",
                                  "int4:032", "int4:32-offset", "INT4", "int4:32*bf16"])
def test_text_that_is_no_format(text: str) -> None:
    with pytest.raises(ValueError, match="no format"):
        Quant.parse(text)


@pytest.mark.parametrize("text", TEXTS)
def test_rounding_is_to_the_nearest_step(text: str) -> None:
    quant, w = Quant.parse(text), weight()
    made = round_to_nearest(w, quant)
    assert int(made.values.min()) >= quant.lowest
    assert int(made.values.max()) <= quant.highest
    stored = made.scales if quant.scale == "f32" else made.scales.half().float()
    assert torch.equal(stored, made.scales)
    steps = made.scales.abs().repeat_interleave(256 // made.scales.shape[1], 1)
    # Four bits have a step more on one side; what scales lose in f16 moves the end of a group.
    most = 0.501 if quant.scale == "f32" and quant.bits == 8 else 1.01
    assert float(((made.dequantised() - w).abs() / steps).max()) <= most


def test_what_a_format_holds_stays() -> None:
    for text in ("int8:32", "int4:32", "int4:16/f32"):
        once = round_to_nearest(weight(), Quant.parse(text)).dequantised()
        again = round_to_nearest(once, Quant.parse(text)).dequantised()
        assert torch.equal(once, again)


def test_offsets_help_where_numbers_lie_to_one_side() -> None:
    w = weight().abs()
    errors = [float((round_to_nearest(w, Quant(4, 32, offset)).dequantised() - w).norm())
              for offset in (False, True)]
    assert errors[1] < 0.7 * errors[0]


def test_zeros_and_tiny_numbers() -> None:
    for text in TEXTS:
        made = round_to_nearest(torch.zeros(2, 128), Quant.parse(text))
        assert torch.equal(made.dequantised(), torch.zeros(2, 128))
        tiny = round_to_nearest(torch.full((2, 128), 1e-12), Quant.parse(text))
        assert bool(torch.isfinite(tiny.dequantised()).all())


def test_numbers_that_are_not_finite() -> None:
    for bad in (float("nan"), float("inf")):
        w = weight()
        w[2, 3] = bad
        with pytest.raises(GraphError, match="not finite"):
            round_to_nearest(w, Quant(4, 32))


def test_common_formats() -> None:
    def least(*texts: str) -> str:
        return str(common([Quant.parse(t) for t in texts]))

    assert least("int4:32", "int4:32") == "int4:32"
    assert least("int4:32", "int8:32") == "int8:32"
    assert least("int4:128", "int4:32") == "int4:32"
    assert least("int4:32", "int8:16/f32") == "int8:16/f32"
    assert least("int4:32", "int4:32+offset") == "int4:32+offset"
    assert least("int8", "int4:64") == "int8:64/f32"
    assert least("int4:32*int8", "int4:32*int8") == "int4:32*int8"
    assert least("int4:32*int8", "int4:32") == "int4:32"
    assert least("int4:32/f32", "int4:32+offset") == "int8:32+offset/f32"


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(TEXTS, 2)))
def test_joined_weights_keep_every_number(a: str, b: str) -> None:
    parts = [round_to_nearest(weight(seed=i), Quant.parse(t)) for i, t in enumerate((a, b))]
    joined = concat_rows(parts)
    assert joined.quant == common([p.quant for p in parts])
    assert torch.equal(joined.dequantised(), torch.cat([p.dequantised() for p in parts]))
    order = torch.tensor([11, 0, 5])
    assert torch.equal(joined.rows(order).dequantised(), joined.dequantised()[order])
    assert torch.equal(joined.rows(slice(4, 8)).dequantised(), joined.dequantised()[4:8])


def test_what_holds_what() -> None:
    assert Quant.parse("int8:16+offset/f32").holds(Quant.parse("int4:32*int8"))
    assert not Quant.parse("int4:32").holds(Quant.parse("int8:32"))
    assert not Quant.parse("int4:32").holds(Quant.parse("int4:32+offset"))
    assert not Quant.parse("int4:128").holds(Quant.parse("int4:32"))
    assert not Quant.parse("int4:32").holds(Quant.parse("int4:32/f32"))


def test_tensors_that_are_no_quantised_weight() -> None:
    good = round_to_nearest(weight(), Quant(4, 32))
    values, scales = good.values, good.scales
    for quant, parts, message in (
            (Quant(4, 32), (values.float(), scales), r"values are torch.float32 \[6, 256\]"),
            (Quant(4, 32), (values[0], scales), "wanted torch.int8"),
            (Quant(4, 32), (values, scales[:, :4]), r"scales are .* wanted .*\[6, 8\]"),
            (Quant(4, 32), (values, scales.half()), "scales are torch.float16"),
            (Quant(4, 32), (values[:, :40], scales), "k = 40 is no multiple of 32"),
            (Quant(4, 32), (values, scales, scales), "has offsets"),
            (Quant(4, 32), (values + 8, scales), "values are .* to .*, wanted -8 to 7"),
            (Quant(4, 32), (values, scales * 1.0001), r"no f16 numbers\n.*int4:32/f32"),
            (Quant(4, 32, offset=True), (values, scales), "has no offsets")):
        with pytest.raises(GraphError, match=message):
            Quantised(quant, *parts)


def test_bytes() -> None:
    assert Quant(8).bytes(10, 64) == 10 * (64 + 4)
    assert Quant(4, 32).bytes(10, 64) == 10 * (32 + 4)
    assert Quant(4, 32, offset=True, scale="f32").bytes(10, 64) == 10 * (32 + 16)


def test_what_is_asked_for() -> None:
    assert asked(None, None, "bf16") is None
    assert asked("none", None, "bf16") is None
    assert str(asked("int4", "bf16", "bf16")) == "int4:32+offset"
    assert str(asked("int4:32", "bf16", "bf16")) == "int4:32"
    assert str(asked("int4+offset", None, "f32")) == "int4:32+offset"
    assert str(asked("int8", "int8", "bf16")) == "int8*int8"


def test_rows_are_rounded_beside_weights_of_4_bits() -> None:
    assert Quant.parse("int4:32*int8").rounds_rows
    assert not Quant.parse("int8:32*int8").rounds_rows
    assert not Quant.parse("int4:32").rounds_rows


@pytest.mark.parametrize(("quantize", "act", "message", "hint"), [
    ("int5", None, "--quantize int5: this is no format", "formats: int8"),
    ("int4:32*int8", None, "this is no format", "formats"),
    ("file", None, "--quantize file: this is no format", "formats"),
    (None, "int8", "--act int8 without --quantize", "--quantize int8"),
    ("int4", "f16", "--act f16: activations of this layer are bf16", "--act bf16 or --act int8"),
])
def test_what_cannot_be_asked_for(quantize: str | None, act: str | None, message: str,
                                  hint: str) -> None:
    with pytest.raises(GraphError) as caught:
        asked(quantize, act, "bf16")
    assert message in caught.value.message
    assert hint in caught.value.hint
