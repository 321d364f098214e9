"""Quantised blocks of GGUF files are taken number for number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from hf_tiny import tiny_model, write_gguf

from graphdsl.hf.checkpoint import open_checkpoint
from graphdsl.hf.gguf_blocks import BLOCKS, quantised_of
from graphdsl.hf.model import CheckpointWeights
from graphdsl.quant import Quantised

SCALES_AT = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the f16 numbers of a block lie, unless it is at its beginning alone."""


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_what_gguf_makes_of_them(name: str) -> None:
    """All bits are drawn, but for those of f16, which have to be finite."""
    draw = np.random.default_rng(0)
    block, size = GGML_QUANT_SIZES[Kind[name]]
    rows, columns = 5, 768
    raw = draw.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for at in SCALES_AT.get(name, (0,)):
        raw[:, at:at + 2] = draw.standard_normal((len(raw), 1)).astype(np.float16).view(np.uint8)
    wanted = dequantize(raw.reshape(rows, -1), Kind[name])
    found = quantised_of(name, raw.reshape(-1), (rows, columns))
    assert found.quant == BLOCKS[name].quant
    assert np.array_equal(found.dequantised().numpy(), wanted)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1])
def test_weights_of_a_file(tmp_path: Path, kind: Kind) -> None:
    """Rows of q and k are in order, as those that are dequantised."""
    write_gguf(tmp_path / "m.gguf", tiny_model(), kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    names = checkpoint.settings.family.names
    formats = {name: checkpoint.quant(name) for name in names}
    assert {n for n, q in formats.items() if q is None} == {n for n in names if "norm" in n}
    assert {q for q in formats.values() if q} == {BLOCKS[kind.name].quant}
    weights = CheckpointWeights(checkpoint, {n for n, q in formats.items() if q})
    for name in names:
        found, wanted = weights[name], checkpoint.param(name)
        if isinstance(found, Quantised):
            found = found.dequantised()
        assert torch.equal(found, wanted), name


def test_a_file_of_floats_has_no_formats(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(), Kind.F16)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert not any(map(checkpoint.quant, checkpoint.settings.family.names))
