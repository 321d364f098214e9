"""Models with quantised weights say what those with the dequantised ones say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hf_tiny import tiny_model, write_gguf
from packedcase import write_packed
from quick import quick_environment

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf.checkpoint import open_checkpoint
from graphdsl.hf.model import Choice, LanguageModel, open_model
from graphdsl.layer import trace
from graphdsl.reference import ACT_TOLERANCE, error_of, run

IDS = torch.randint(0, 99, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    return BuildOptions(cache=tmp_path_factory.mktemp("cache"), environment=quick_environment())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file and a GPTQ folder."""
    folder = tmp_path_factory.mktemp("files")
    write_gguf(folder / "q4_1.gguf", tiny_model(), Kind.Q4_1)
    (folder / "gptq").mkdir()
    write_packed(folder / "gptq", "gptq", symmetric=True)
    return folder


def formats(model: LanguageModel) -> set[str]:
    """Those of the packed params of a model that is built."""
    found = (p.get("quant") for p in model.operator.manifest["params"] if len(p["shape"]) == 2)
    return {f"{q['bits']}:{q['group']}{'+' * q['offset']}{'*' * (q['act'] == 'int8')}" if q else ""
            for q in found}


def wanted(model: LanguageModel) -> torch.Tensor:
    """Logits of IDS in the reference, on the dequantised weights."""
    family = model.checkpoint.settings.family
    graph = trace(family.model(family.config))
    rows = torch.arange(IDS.shape[1], dtype=torch.int32).expand(IDS.shape).contiguous()
    params = {name: model.checkpoint.param(name) for name in family.names}
    state = {v.name: torch.zeros(*IDS.shape, 2, 16) for v in graph.state}
    return run(graph, [IDS.int(), rows, rows], params, state)[0]


@pytest.mark.parametrize(("name", "form"), [
    pytest.param("q4_1.gguf", {"4:32+"}, marks=pytest.mark.full), ("gptq", {"4:32", ""})])
def test_the_files_own_formats_are_the_default(files: Path, options: BuildOptions, name: str,
                                               form: set[str]) -> None:
    """The table of the GPTQ model is floats."""
    model = open_model(files / name, options)
    assert formats(model) == form
    assert error_of(model.logits(IDS), wanted(model)) < 2e-5


@pytest.mark.full
def test_other_ways_to_store_them(files: Path, options: BuildOptions) -> None:
    file = files / "q4_1.gguf"
    floats = open_model(file, options, quantize="none")
    assert formats(floats) == {""}
    assert error_of(floats.logits(IDS), wanted(floats)) < 2e-5
    eight = open_model(file, options, quantize="int8")
    assert formats(eight) == {"8:0"}
    assert 1e-4 < error_of(eight.logits(IDS), wanted(floats)) < 0.2
    rounded = open_model(file, options, act="int8")
    assert formats(rounded) == {"4:32+*"}
    assert error_of(rounded.logits(IDS[:1, :1]), wanted(floats)[:1, :1]) < 2 * ACT_TOLERANCE["int8"]


def test_tables_have_8_bits(files: Path, options: BuildOptions) -> None:
    checkpoint = open_checkpoint(files / "q4_1.gguf")
    chosen = Choice.read("int4:64+offset", "int8", options)
    found = {name: str(chosen.of(checkpoint, name)) for name in ("embed", "head", "layers.0.wq")}
    assert found == {"embed": "int8:64*int8", "head": "int8:64*int8",
                     "layers.0.wq": "int4:64+offset*int8"}
    eight = Choice.read("int8", None, options)
    assert {str(eight.of(checkpoint, name)) for name in found} == {"int8"}


@pytest.mark.parametrize(("quantize", "act", "message"), [
    ("int3", None, "--quantize int3: this is no format"),
    ("none", "int8", "--act int8 without --quantize"),
    ("file", "bf16", "--act bf16: activations of this layer are f32"),
])
def test_refusals(options: BuildOptions, quantize: str, act: str | None, message: str) -> None:
    """Before the model is looked for."""
    with pytest.raises(GraphError, match=message):
        open_model("nowhere", options, quantize=quantize, act=act)


@pytest.mark.parametrize(("quantize", "act"), [("file", None), ("int8", None), (None, "int8")])
def test_a_backend_without(options: BuildOptions, quantize: str | None, act: str | None) -> None:
    ascend = BuildOptions(cache=options.cache, backend="ascend", dtype="f16")
    with pytest.raises(GraphError, match="the ascend backend has no quantised weights"):
        open_model("nowhere", ascend, quantize=quantize, act=act)
