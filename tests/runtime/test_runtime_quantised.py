"""Quantised weights on their way into a library: what is rounded, what is taken as it is."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch

from graphdsl.backends.cpu.backend import BACKEND
from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.layer import Layer, Param, trace
from graphdsl.manifest import Identity, manifest_of
from graphdsl.ops import embedding, linear, reshape, rms_norm, transpose
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.passes.quantise import quantised
from graphdsl.plan import Plan, dims_of, ports_of
from graphdsl.quant import Quant, Quantised, concat_rows, round_to_nearest
from graphdsl.runtime.device import Device
from graphdsl.runtime.weights import WeightFormat

TARGET = replace(BACKEND.target, quants=True)


class Parts(Layer):
    """Merged weights, a table, halves of a weight, one that is [in, out], one whose rows are taken
    in another order, and one that stays."""

    signature = ("ids[batch]:i32 -> a[batch, 16], b[batch, 32], c[batch, 48], d[batch, 32], "
                 "e[batch, 48]")

    def __init__(self) -> None:
        self.table = Param(64, 32)
        self.norm = Param(32)
        self.a = Param(16, 32)
        self.b = Param(32, 32)
        self.halves = Param(96, 32)
        self.turned = Param(32, 32)
        self.heads = Param(48, 32)

    def forward(self, ids: Value) -> tuple[Value, ...]:
        x = embedding(ids, self.table)
        h = rms_norm(x, self.norm, eps=1e-5)
        return (linear(h, self.a), linear(h, self.b),
                linear(x * 2.0, self.halves[:48]) + linear(x * 3.0, self.halves[48:]),
                (x * 4.0) @ self.turned, linear(x * 5.0, by_head(self.heads)))


def by_head(rows: Value) -> Value:
    """The rows [2 heads, 3 of each, 8] of a weight, as [3, 2, 8]."""
    apart = transpose(reshape(rows, shape=(2, 3, 8, 32)), order=(1, 0, 2, 3))
    return reshape(apart, shape=(48, 32))


def copied(address: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """The numbers at an address."""
    data = bytearray(ctypes.string_at(address, shape[0] * shape[1] * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype).view(shape)


@dataclass
class Recorder:
    """Stands for a library: keeps what it is asked to pack."""

    shapes: list[list[int]]
    quants: list[Quant | None]
    packed: dict[int, Quantised] = field(default_factory=dict)

    def packed_bytes(self, param: int) -> int:
        return 8

    def pack_quantised(self, param: int, values: int, scales: int, offsets: int,
                       target: int) -> None:
        (n, k), quant = self.shapes[param], self.quants[param]
        assert quant is not None
        groups = k // (quant.group or k)
        assert (offsets != 0) == quant.offset
        self.packed[param] = Quantised(
            quant, copied(values, (n, k), torch.int8), copied(scales, (n, groups), torch.float32),
            copied(offsets, (n, groups), torch.float32) if offsets else None)


def opened(formats: Mapping[str, str], dtype: str = "f32") -> tuple[WeightFormat, Recorder]:
    """What the params of Parts look like where weights have these formats."""
    source = quantised(trace(Parts(), dtype),
                       lambda name, kind: Quant.parse(formats[name]) if name in formats else None)
    done = run_pipeline(source, TARGET)
    quants = frozenset(p for p in done.graph.params if p.type.quant)
    plan = Plan(done.graph, done.recipes, ports_of(done.graph, quants), *dims_of(done.graph))
    manifest = manifest_of(plan, source, Identity("cpu", dtype, ()))
    found = [Quant(**p["quant"]) if "quant" in p else None for p in manifest["params"]]
    library = Recorder([p["shape"] for p in manifest["params"]], found)
    return WeightFormat("Parts", manifest, cast(Any, library), Device()), library


def floats(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {v.name: torch.randn([int(cast(int, s)) for s in v.shape], generator=generator)
            for v in trace(Parts()).params}


def everything(form: str) -> dict[str, str]:
    return dict.fromkeys(("table", "a", "b", "halves", "turned", "heads"), form)


def packed(form: WeightFormat, library: Recorder,
           weights: Mapping[str, Any]) -> dict[str, Quantised]:
    """What was packed, by the weights that it is made of."""
    form.pack(weights)
    names = [p["name"] for p in form.manifest["params"]]
    return {names[i]: weight for i, weight in library.packed.items()}


@pytest.mark.parametrize("text", ["int4:16", "int8", "int4:32+offset"])
def test_floats_are_rounded(text: str) -> None:
    form, library = opened(everything(text))
    weights = floats()
    found = packed(form, library, weights)
    quant = Quant.parse(text)
    wanted = [weights["table"], torch.cat([weights["a"], weights["b"]]),
              weights["halves"][:48], weights["halves"][48:], weights["turned"].t(),
              weights["heads"].view(2, 3, 8, 32).transpose(0, 1).reshape(48, 32)]
    assert len(found) == len(wanted)
    for w in wanted:
        rounded = round_to_nearest(w, quant).dequantised()
        assert any(torch.equal(rounded, p.dequantised()) for p in found.values())


def test_the_reference_has_what_is_packed() -> None:
    form, library = opened(everything("int4:16"))
    weights = floats()
    found = packed(form, library, weights)
    known = form.dequantised(weights)
    assert torch.equal(known["norm"], weights["norm"])
    wanted = (known["table"], torch.cat([known["a"], known["b"]]), known["turned"].t())
    for w in wanted:
        assert any(torch.equal(w, p.dequantised()) for p in found.values())


def test_quantised_weights_are_not_requantised() -> None:
    forms = {"table": "int8:32", "a": "int4:32", "b": "int8:16/f32", "halves": "int4:32+offset",
             "heads": "int4:16"}
    form, library = opened(forms)
    weights: dict[str, Any] = {**floats()}
    weights |= {n: round_to_nearest(weights[n], Quant.parse(t)) for n, t in forms.items()}
    found = packed(form, library, weights)
    assert len(found) == 5
    joined = concat_rows([weights["a"], weights["b"]])
    heads = weights["heads"].rows(torch.arange(48).view(2, 3, 8).transpose(0, 1).reshape(48))
    for w in (weights["table"], joined, weights["halves"].rows(slice(48, 96)), heads):
        assert any(torch.equal(w.dequantised(), p.dequantised()) for p in found.values())
    assert torch.equal(form.dequantised(weights)["b"], weights["b"].dequantised())


def test_a_float_beside_a_quantised_one_is_rounded() -> None:
    form, library = opened(everything("int4:16"))
    weights: dict[str, Any] = {**floats()}
    wanted = torch.cat([round_to_nearest(weights[n], Quant(4, 16)).dequantised() for n in "ab"])
    weights["a"] = round_to_nearest(weights["a"], Quant(4, 16))
    found = packed(form, library, weights)
    assert any(torch.equal(wanted, p.dequantised()) for p in found.values())


def test_rounding_starts_from_the_source() -> None:
    """A f32 source is not rounded to the layer's bf16 first."""
    form, library = opened(everything("int8"), "bf16")
    weights = floats()
    found = packed(form, library, weights)
    wanted = round_to_nearest(weights["table"], Quant(8)).dequantised()
    assert any(torch.equal(wanted, p.dequantised()) for p in found.values())


def test_the_manifest_says_what_is_quantised() -> None:
    form, _ = opened({**everything("int4:16"), "b": "int8:16"})
    weights = {w["name"]: w.get("quant", {}).get("bits") for w in form.manifest["weights"]}
    assert weights == {"table": 4, "norm": None, "a": 4, "b": 8, "halves": 4, "turned": 4,
                       "heads": 4}
    params = {p["name"]: p["quant"]["bits"] for p in form.manifest["params"] if "quant" in p}
    assert params["concat.0"] == 8


def test_a_weight_that_cannot_be_quantised_says_so_in_the_manifest() -> None:
    form, _ = opened({"a": "int4:16"})
    assert not [w for w in form.manifest["weights"] if "quant" in w]


def rounded(name: str, text: str) -> Quantised:
    return round_to_nearest(floats()[name], Quant.parse(text))


@pytest.mark.parametrize(("name", "value", "message", "hint"), [
    ("table", rounded("table", "int8:16"), "weight table is int8:16, which a build for int4:16 "
     "does not hold", "build for the format"),
    ("table", rounded("a", "int4:16"), r"weight table is \[16, 32\], wanted \[64, 32\]", ""),
    ("turned", rounded("turned", "int4:16"), "weight turned is transposed before it is read",
     r"weight.dequantised\(\)"),
    ("table", Quantised(Quant(8), torch.ones(64, 32, dtype=torch.int8),
                        torch.full((64, 1), float("inf"))), "has scales that are not finite",
     "damaged"),
    ("table", torch.full((64, 32), float("nan")), "weight table has numbers that are not finite",
     "damaged"),
    ("a", torch.full((16, 32), float("inf")), "weight a, b has numbers that are not finite",
     "damaged"),
    ("table", torch.zeros(64, 32, dtype=torch.int8), "wanted a floating dtype", "Quantised"),
])
def test_weights_that_do_not_fit(name: str, value: Any, message: str, hint: str) -> None:
    form, _ = opened(everything("int4:16"))
    with pytest.raises(GraphError, match=message + (rf"(.|\n)*{hint}" if hint else "")):
        form.pack({**floats(), name: value})


def test_a_quantised_weight_for_a_build_of_floats() -> None:
    form, _ = opened({})
    with pytest.raises(GraphError, match=r"weight table is quantised \(int4:16\), wanted a "
                       r"torch.Tensor(.|\n)*dequantised"):
        form.pack({**floats(), "table": rounded("table", "int4:16")})
