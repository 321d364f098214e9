"""GPTQ: the columns of a weight are rounded one after another, and those to come take up the error.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (2022), in the order of the columns as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl.lazy import torch
from graphdsl.quant import Quant, round_to_nearest

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01
"""Of the mean of the diagonal, added to it: so that directions hardly seen are not blown up."""
AT_ONCE = 128
"""Columns whose errors reach the rest together; a multiple of every group."""


@dataclass(frozen=True, eq=False)
class Gptq:
    """A weight [n, k] as files of GPTQ have it: w = scale * (value - zero).

    values: uint8 [n, k]; scales: f16 [n, k / group]; zeros: uint8, as scales.
    """

    bits: int
    values: Tensor
    scales: Tensor
    zeros: Tensor

    def dequantised(self) -> Tensor:
        """The weight, f32 [n, k]."""
        n, k = self.values.shape
        groups = self.scales.shape[1]
        steps = self.values.reshape(n, groups, -1).float() - self.zeros[:, :, None].float()
        return (steps * self.scales[:, :, None].float()).reshape(n, k)


def gptq(weight: Tensor, gram: Tensor, quant: Quant) -> Gptq:
    """`weight` f32 [n, k], rounded such that x w^T changes little for rows x of which `gram` is
    the sum of x^T x, f32 [k, k]. k has to be whole groups of `quant`."""
    n, k = weight.shape
    group = quant.group or k
    assert quant.fits(k)
    rest, factor = weight.float().clone(), _factor(gram.float())
    values = torch.empty(n, k, dtype=torch.uint8)
    scales = torch.empty(n, k // group, dtype=torch.float16)
    zeros = torch.empty(n, k // group, dtype=torch.uint8)
    for begin in range(0, k, AT_ONCE):
        end = min(begin + AT_ONCE, k)
        part, errors = rest[:, begin:end], torch.empty(n, end - begin)
        for i, column in enumerate(range(begin, end)):
            if column % group == 0:
                # For a group of a whole row, `rest` reaches beyond this part.
                scale, zero = _grid(rest[:, column:column + group], quant)
                scales[:, column // group], zeros[:, column // group] = scale, zero
            levels = (part[:, i] / scale.float() + zero).round().clamp(0, 2 ** quant.bits - 1)
            values[:, column] = levels
            error = (part[:, i] - (levels - zero) * scale.float()) / factor[column, column]
            part[:, i:] -= error[:, None] * factor[column, column:end]
            errors[:, i] = error
        rest[:, end:] -= errors @ factor[begin:end, end:]
    return Gptq(quant.bits, values, scales, zeros)


def _factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Gram matrix."""
    damped = gram.clone()
    diagonal = damped.diagonal()
    # A column that is always 0 says nothing: its weights are rounded to nearest.
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _grid(part: Tensor, quant: Quant) -> tuple[Tensor, Tensor]:
    """The scale (f16) and the zero (f32, whole) of every row of a group of columns. Without an
    offset the zero is the middle level, and the scale that which rounding to nearest takes. With
    one, 0 is always a level, and never the first, for which files of GPTQ have no room."""
    smallest = torch.finfo(torch.float16).tiny
    if not quant.offset:
        scale = round_to_nearest(part, Quant(quant.bits)).scales[:, 0].half()
        middle = torch.full(scale.shape, 2.0 ** (quant.bits - 1))
        return torch.where(scale == 0, smallest, scale), middle
    levels = 2 ** quant.bits - 1
    low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
    low = torch.minimum(low, -high / (levels - 1))  # the level below zero
    scale = ((high - low) / levels).clamp(min=smallest).half()
    return scale, (-low / scale.float()).round().clamp(1, levels)


__all__ = ["Gptq", "gptq"]
