"""Quantised blocks of GGUF files as weights of graphdsl.quant, number for number.

Every block holds 32 or 256 numbers of one row. The f16 scales of blocks of 32 are kept as they are;
the superblocks of 256 have small whole scales for groups of 16 or 32 and one f16 for all of them,
whose products f32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphdsl.lazy import torch
from graphdsl.quant import Quant, Quantised

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Parts = tuple[NDArray[Any], Floats, Floats | None]
"""Whole numbers [blocks, size], scales and offsets [blocks, groups]."""


@dataclass(frozen=True)
class Blocks:
    """How blocks of a ggml type are read."""

    quant: Quant
    size: int
    read: Callable[[Bytes], Parts]
    """From the bytes of blocks, [blocks, bytes of one]."""


def _f16(raw: Bytes, start: int) -> Floats:
    """The f16 that begins at a byte of every block, [blocks, 1]."""
    numbers: Floats = np.ascontiguousarray(raw[:, start:start + 2]).view(np.float16)
    return numbers.astype(np.float32)


def _nibbles(raw: Bytes, groups: int) -> Bytes:
    """Bytes whose low halves are one run of numbers and high halves the next: `groups` times."""
    split = raw.reshape(raw.shape[0], groups, 1, -1)
    return np.concatenate([split & 15, split >> 4], 2).reshape(raw.shape[0], -1)


def _fifth_bits(raw: Bytes) -> Bytes:
    """Bit i of 4 bytes is that of number i; it counts 16."""
    return np.unpackbits(raw, axis=1, bitorder="little") * np.uint8(16)


def _q4_0(raw: Bytes) -> Parts:
    return _nibbles(raw[:, 2:], 1).astype(np.int8) - 8, _f16(raw, 0), None


def _q4_1(raw: Bytes) -> Parts:
    return _nibbles(raw[:, 4:], 1), _f16(raw, 0), _f16(raw, 2)


def _q5_0(raw: Bytes) -> Parts:
    values = _nibbles(raw[:, 6:], 1) | _fifth_bits(raw[:, 2:6])
    return values.astype(np.int8) - 16, _f16(raw, 0), None


def _q5_1(raw: Bytes) -> Parts:
    return _nibbles(raw[:, 8:], 1) | _fifth_bits(raw[:, 4:8]), _f16(raw, 0), _f16(raw, 2)


def _q8_0(raw: Bytes) -> Parts:
    return raw[:, 2:].view(np.int8), _f16(raw, 0), None


def _six_bits(raw: Bytes) -> tuple[Bytes, Bytes]:
    """8 scales and 8 minima of 6 bits in 12 bytes: four of each in whole bytes, whose upper two
    bits belong to the other four."""
    first, second, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], 1)
    return scales, np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], 1)


def _scaled(raw: Bytes) -> tuple[Floats, Floats]:
    scales, least = _six_bits(raw[:, 4:16])
    return _f16(raw, 0) * scales, -(_f16(raw, 2) * least)


def _q4_k(raw: Bytes) -> Parts:
    return _nibbles(raw[:, 16:], 4), *_scaled(raw)


def _q5_k(raw: Bytes) -> Parts:
    bits = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _nibbles(raw[:, 48:], 4) | bits.reshape(len(raw), -1) << 4, *_scaled(raw)


def _q6_k(raw: Bytes) -> Parts:
    blocks = len(raw)
    low = _nibbles(raw[:, :128], 2).reshape(blocks, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = raw[:, 128:192].reshape(blocks, 2, 1, 32) >> shifts & 3
    values = (low | high << 4).astype(np.int8) - 32
    return values.reshape(blocks, 256), _f16(raw, 208) * raw[:, 192:208].view(np.int8), None


BLOCKS = {
    "Q4_0": Blocks(Quant(4, 32), 32, _q4_0),
    "Q4_1": Blocks(Quant(4, 32, offset=True), 32, _q4_1),
    "Q5_0": Blocks(Quant(8, 32), 32, _q5_0),
    "Q5_1": Blocks(Quant(8, 32, offset=True), 32, _q5_1),
    "Q8_0": Blocks(Quant(8, 32), 32, _q8_0),
    "Q4_K": Blocks(Quant(4, 32, offset=True, scale="f32"), 256, _q4_k),
    "Q5_K": Blocks(Quant(8, 32, offset=True, scale="f32"), 256, _q5_k),
    "Q6_K": Blocks(Quant(8, 16, scale="f32"), 256, _q6_k),
}
"""By the name of the ggml type."""


def quantised_of(kind: str, data: Bytes, shape: tuple[int, int]) -> Quantised:
    """The weight [n, k] whose blocks of a type of BLOCKS are these bytes."""
    blocks = BLOCKS[kind]
    n, k = shape
    values, scales, offsets = blocks.read(data.reshape(n * (k // blocks.size), -1))
    made = [None if part is None else torch.from_numpy(np.ascontiguousarray(part, np.float32))
            .reshape(n, -1) for part in (scales, offsets)]
    assert made[0] is not None
    whole = np.ascontiguousarray(values).astype(np.int8, copy=False)
    return Quantised(blocks.quant, torch.from_numpy(whole).reshape(n, k), made[0], made[1])


__all__ = ["BLOCKS", "Blocks", "quantised_of"]
