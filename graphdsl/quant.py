"""How quantised weights are stored: formats, and weights on their way into one.

A weight [n, k] keeps its logical dtype, and the maths of a graph is that of the dequantised weight:
w = q * scale, or q * scale + offset, with a scale for every `group` numbers along k.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import gcd
from typing import TYPE_CHECKING

from graphdsl.errors import GraphError
from graphdsl.lazy import torch, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

BITS = (4, 8)
GROUPS = (0, 16, 32, 64, 128)
SCALES = ("f16", "f32")
ACTS = ("float", "int8")
FORMATS = ("int8, int4 (which is int4:32+offset), int8:32, int4:32, int4:128+offset; "
           "groups: 16, 32, 64, 128")
"""What a format is written as, for whoever wrote another."""
OWN, NONE = "file", "none"
"""Instead of a format: that of the model's file, or the layer's dtype whatever the file has."""
_TEXT = re.compile(r"int([48])(?::(\d+))?(\+offset)?(?:/(f16|f32))?(\*int8)?")
_LARGEST_F16 = 65504.0
_AT_ONCE = 1 << 19


@dataclass(frozen=True)
class Quant:
    """A format of quantised weights.

    `bits`: 4 or 8. `group`: numbers along k that share a scale (16, 32, 64, 128), or 0 for the
    whole row. With `offset`, w = q * scale + offset. `scale`: dtype of scales and offsets in
    memory, which is f32 where a row has one. `act`: with "int8", rows of x may be rounded to int8
    for integer dot products, one scale per 32 numbers or per group; backends do so beside weights
    of 4 bits (`rounds_rows`).
    """

    bits: int
    group: int = 0
    offset: bool = False
    scale: str = "f16"
    act: str = "float"

    def __post_init__(self) -> None:
        if self.group == 0:
            object.__setattr__(self, "scale", "f32")
        known = (self.bits in BITS and self.group in GROUPS and self.scale in SCALES
                 and self.act in ACTS)
        if not known:
            raise ValueError(f"no format of {self.bits} bits, groups of {self.group}, "
                             f"{self.scale} scales and {self.act} activations")

    def __str__(self) -> str:
        """`int8`, `int4:32`, `int4:128+offset`, `int8:16/f32`, `int4:32*int8`."""
        group = f":{self.group}" if self.group else ""
        offset = "+offset" if self.offset else ""
        scale = f"/{self.scale}" if self.group and self.scale != "f16" else ""
        act = f"*{self.act}" if self.act != "float" else ""
        return f"int{self.bits}{group}{offset}{scale}{act}"

    @staticmethod
    def parse(text: str) -> Quant:
        """The format that `str` gives as `text`. Raises ValueError for text that it never gives."""
        found = _TEXT.fullmatch(text)
        if not found:
            raise ValueError(f"no format {text!r}")
        bits, group, offset, scale, act = found.groups()
        quant = Quant(int(bits), int(group or 0), bool(offset), scale or "f16",
                      "int8" if act else "float")
        if str(quant) != text:
            raise ValueError(f"no format {text!r}")
        return quant

    @property
    def rounds_rows(self) -> bool:
        """Whether rows of x are rounded to int8. Beside weights of 8 bits that would cost accuracy
        and gain nothing: reading the weights takes longer than products of 16 bits."""
        return self.act == "int8" and self.bits == 4

    @property
    def lowest(self) -> int:
        """The smallest q."""
        return 0 if self.bits == 4 and self.offset else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest q."""
        return self.lowest + (1 << self.bits) - 1

    def bytes(self, n: int, k: int) -> int:
        """Of a weight [n, k], without what a backend pads it with."""
        numbers = k // (self.group or k) * (2 if self.offset else 1)
        return n * (k * self.bits // 8 + numbers * {"f16": 2, "f32": 4}[self.scale])

    def fits(self, k: int) -> bool:
        """Whether rows of k numbers are whole groups."""
        return self.group == 0 or k % self.group == 0

    def holds(self, other: Quant) -> bool:
        """Whether every weight in the format `other` is one in this format, number for number."""
        return replace(common([other, self]), act=self.act) == self


@dataclass(frozen=True, eq=False)
class Quantised:
    """A weight [n, k] on its way into a library.

    `values` is int8 [n, k]: -8..7 for 4 bits without offset, 0..15 with, -128..127 for 8.
    `scales` is f32 [n, k / group] (numbers that the dtype of scales holds), and so is `offsets`,
    which only formats with offset have. Raises GraphError for tensors of other shapes and dtypes.
    """

    quant: Quant
    values: Tensor
    scales: Tensor
    offsets: Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k]."""
        n, k = self.values.shape
        return n, k

    def dequantised(self, dtype: str = "f32") -> Tensor:
        """The weight [n, k] in a dtype of the IR, computed in f32."""
        n, k = self.shape
        grouped = self.values.float().reshape(n, self.scales.shape[1], -1)
        grouped *= self.scales[:, :, None]
        if self.offsets is not None:
            grouped += self.offsets[:, :, None]
        return grouped.reshape(n, k).to(torch_dtype(dtype))

    def is_finite(self) -> bool:
        """Whether all that it stands for is."""
        numbers = [x for x in (self.scales, self.offsets) if x is not None]
        return all(bool(torch.isfinite(x).all()) for x in numbers)

    def rows(self, index: slice | Tensor) -> Quantised:
        """Some of the rows, in the order of `index`."""
        offsets = None if self.offsets is None else self.offsets[index]
        return _fitting(self.quant, self.values[index], self.scales[index], offsets)

    def held_in(self, quant: Quant) -> Quantised:
        """The same numbers in a format that holds this one."""
        assert quant.holds(self.quant), f"{quant} does not hold {self.quant}"
        assert quant.fits(self.shape[1])
        groups = self.shape[1] // (quant.group or self.shape[1])
        values, scales = self.values, _repeated(self.scales, groups)
        offsets = None if self.offsets is None else _repeated(self.offsets, groups)
        if quant.offset and offsets is None:
            shift = quant.lowest - self.quant.lowest if quant.bits == self.quant.bits else 0
            values, offsets = values + shift, scales * -shift
        return _fitting(quant, values, scales, offsets)


def asked(quantize: str | None, act: str | None, dtype: str) -> Quant | None:
    """The format that `--quantize` and `--act` ask for in a layer of this dtype; None where they
    ask for none. Raises GraphError for what is not a format or an act."""
    if quantize is None or quantize == NONE:
        if act == "int8":
            raise GraphError("--act int8 without --quantize: activations are rounded for quantised "
                             "weights alone", hint="--quantize int8")
        return None
    chosen = act_of(act, dtype)
    # With an offset the steps cover the numbers of a group and no others: of 16, that counts.
    text = "int4:32+offset" if quantize in ("int4", "int4+offset") else quantize
    try:
        quant = Quant.parse(text.replace("*", "?"))  # what x is rounded to is for --act to say
    except ValueError:
        raise GraphError(f"--quantize {quantize}: this is no format",
                         hint=f"formats: {FORMATS}") from None
    return replace(quant, act=chosen)


def act_of(act: str | None, dtype: str) -> str:
    """`Quant.act` of what `--act` says: int8, or the dtype of the layer, which is the default.
    Raises GraphError for anything else."""
    if act not in (None, "int8", "float", dtype):
        raise GraphError(f"--act {act}: activations of this layer are {dtype}",
                         hint=f"--act {dtype} or --act int8")
    return "int8" if act == "int8" else "float"


def common(quants: Sequence[Quant]) -> Quant:
    """The least format that holds weights in all of these exactly."""
    first = quants[0]
    alike = all(q.scale == first.scale for q in quants)
    offset = any(q.offset for q in quants)
    # Eight times a scale of 24 bits is not exact in a sum: then values stay as they are.
    shifted = any(q.bits == 4 and not q.offset and q.scale == "f32" for q in quants)
    return Quant(8 if offset and shifted else max(q.bits for q in quants),
                 reduce(gcd, [q.group for q in quants]), offset, first.scale if alike else "f32",
                 first.act if all(q.act == first.act for q in quants) else "float")


def concat_rows(parts: Sequence[Quantised]) -> Quantised:
    """Weights of equal k below each other, in the least format that holds all of them."""
    quant = common([p.quant for p in parts])
    held = [p.held_in(quant) for p in parts]
    offsets = [p.offsets for p in held if p.offsets is not None]
    return _fitting(quant, torch.cat([p.values for p in held]),
                    torch.cat([p.scales for p in held]), torch.cat(offsets) if offsets else None)


def round_to_nearest(weight: Tensor, quant: Quant) -> Quantised:
    """A floating weight [n, k] rounded to the format.

    Scales and offsets are rounded to their dtype first, so that what is lost in them is not lost
    twice. Raises GraphError for numbers that are not finite; k has to be whole groups.
    """
    assert weight.dim() == 2
    assert quant.fits(weight.shape[1]), f"{quant} does not fit k = {weight.shape[1]}"
    n, k = weight.shape
    values, scales = torch.empty(n, k, dtype=torch.int8), torch.empty(n, k // (quant.group or k))
    offsets = torch.empty_like(scales) if quant.offset else None
    # Some rows at a time: a weight in f32, several times over, is a good part of a model.
    step = max(1, _AT_ONCE // k)
    for begin in range(0, n, step):
        rows = slice(begin, begin + step)
        values[rows], scales[rows], lowest = _rounded(weight[rows], quant)
        if offsets is not None and lowest is not None:
            offsets[rows] = lowest
    return Quantised(quant, values, scales, offsets)


def _fitting(quant: Quant, values: Tensor, scales: Tensor, offsets: Tensor | None) -> Quantised:
    """A weight made of others that were checked: to read all of its numbers again takes longer than
    to make it."""
    made = object.__new__(Quantised)
    vars(made).update(quant=quant, values=values, scales=scales, offsets=offsets)
    return made


def _rounded(weight: Tensor, quant: Quant) -> tuple[Tensor, Tensor, Tensor | None]:
    n, k = weight.shape
    x = weight.detach().float().reshape(n, k // (quant.group or k), -1)
    low, high = x.amin(-1), x.amax(-1)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise GraphError("a weight with numbers that are not finite cannot be quantised")
    offsets = None
    if quant.offset:
        scales = _stored((high - low) / (quant.highest - quant.lowest), quant)
        offsets = _stored(low - scales * quant.lowest, quant)
        values = _values(x - offsets[:, :, None], scales, quant)
    elif quant.bits == 8:
        scales = _stored(torch.maximum(high, -low) / quant.highest, quant)
        values = _values(x, scales, quant)
    else:
        values, scales = _better(x, low, high, quant)
    return values.to(torch.int8).reshape(n, k), scales, offsets


def _better(x: Tensor, low: Tensor, high: Tensor, quant: Quant) -> tuple[Tensor, Tensor]:
    """Steps of x, and scales: the largest number is either quant.highest steps from 0 or, on the
    side that has one step more, one further, with smaller steps."""
    even = _stored(torch.maximum(high, -low) / quant.highest, quant)
    far = _stored(torch.where(high > -low, high, low) / quant.lowest, quant)
    near, wide = _values(x, even, quant), _values(x, far, quant)
    better = _error(x, wide, far) < _error(x, near, even)
    return torch.where(better[:, :, None], wide, near), torch.where(better, far, even)


def _stored(numbers: Tensor, quant: Quant) -> Tensor:
    """f32 numbers as the dtype of scales holds them."""
    if quant.scale == "f32":
        return numbers
    return numbers.clamp(-_LARGEST_F16, _LARGEST_F16).half().float()


def _values(x: Tensor, scales: Tensor, quant: Quant) -> Tensor:
    """The whole numbers of steps nearest to x, in f32."""
    inverse = torch.where(scales == 0, 0.0, 1 / scales)[:, :, None]
    return (x * inverse).round_().clamp_(quant.lowest, quant.highest)


def _error(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    return (values * scales[:, :, None]).sub_(x).square_().sum(-1)


def _repeated(numbers: Tensor, groups: int) -> Tensor:
    return numbers.repeat_interleave(groups // numbers.shape[1], 1)


def _check(weight: Quantised) -> None:
    label, quant = f"quantised weight {weight.quant}", weight.quant
    if weight.values.dtype != torch.int8 or weight.values.dim() != 2:
        raise GraphError(f"{label}: values are {weight.values.dtype} {list(weight.values.shape)}, "
                         "wanted torch.int8 [n, k]")
    n, k = weight.values.shape
    if not quant.fits(k):
        raise GraphError(f"{label}: k = {k} is no multiple of {quant.group}")
    wanted = [n, k // quant.group if quant.group else 1]
    if (weight.offsets is not None) != quant.offset:
        found = "no offsets" if quant.offset else "offsets"
        raise GraphError(f"{label} has {found}")
    any_fits = quant.bits == 8 or not n * k
    low, high = (0, 0) if any_fits else (int(x) for x in torch.aminmax(weight.values))
    if low < quant.lowest or high > quant.highest:
        raise GraphError(f"{label}: values are {low} to {high}, wanted {quant.lowest} to "
                         f"{quant.highest}")
    for what, tensor in (("scales", weight.scales), ("offsets", weight.offsets)):
        if tensor is not None and (tensor.dtype != torch.float32 or list(tensor.shape) != wanted):
            raise GraphError(f"{label}: {what} are {tensor.dtype} {list(tensor.shape)}, "
                             f"wanted torch.float32 {wanted}")
        if tensor is not None and quant.scale == "f16" and not torch.equal(
                tensor.nan_to_num(0), tensor.half().float().nan_to_num(0)):
            raise GraphError(f"{label}: {what} are no f16 numbers", hint="tensor.half().float(), "
                             f"or the format {replace(quant, scale='f32')}")


__all__ = ["FORMATS", "NONE", "OWN", "Quant", "Quantised", "act_of", "asked", "common",
           "concat_rows", "round_to_nearest"]
