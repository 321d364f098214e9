"""Linears of a Hugging Face folder that GPTQ or AWQ has quantised.

Such a linear [n, k] lies in the file as `qweight`, `qzeros` and `scales` instead of `weight`: whole
numbers q and zero points z of 4 or 8 bits in 32-bit words, w = (q - z) * scale. GPTQ packs q along
k, AWQ (version gemm) along n in an order of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphdsl.errors import GraphError
from graphdsl.hf.fields import Fields
from graphdsl.hf.safetensors_weights import SafetensorsWeights
from graphdsl.lazy import torch
from graphdsl.quant import GROUPS, Quant, Quantised

CONFIG = "quantization_config"
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word column i of eight lies."""
WORD = 32


@dataclass(frozen=True)
class Packing:
    """What config.json says of quantised linears. `shifted`: zero points are stored less 1."""

    method: str
    bits: int
    shifted: bool


@dataclass(frozen=True)
class Steps:
    """What q stands for in a linear [n, k]: zeros and scales [n, groups], the group of every
    column, and the dtype that a format has for these scales."""

    zeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor
    scale: str


def read_packing(fields: Fields) -> Packing | None:
    """How config.json says that linears are quantised; None where it says nothing of it. Raises
    GraphError for other methods, widths and versions than are read here."""
    if not fields.has(CONFIG):
        return None
    own = fields.mapping(CONFIG)
    method = own.text("quant_method", "unknown")
    if method not in ("gptq", "awq"):
        raise GraphError(f"{fields.path}: the weights are quantised ({method}); supported: gptq, "
                         "awq", hint="use the unquantised model; a Llama also comes as a GGUF file")
    bits = own.integer("bits", 4)
    widths = (4, 8) if method == "gptq" else (4,)
    if bits not in widths:
        known = " or ".join(map(str, widths))
        raise GraphError(f"{fields.path}: {method} with {bits} bits; supported: {known} bits")
    if method == "awq":
        own.choice("version", ("gemm", "GEMM"), "gemm")
        return Packing(method, bits, False)
    form = own.choice("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    return Packing(method, bits, form == "gptq")


@dataclass(frozen=True)
class PackedWeights:
    """The weights of a folder of which some linears are packed; the others are floats."""

    files: SafetensorsWeights
    packing: Packing

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, packed ones by the name and shape that they would have."""
        found = self.files.shapes()
        for name in [n for n in found if n.endswith(".qweight")]:
            found[f"{name.removesuffix('qweight')}weight"] = self._shape(found[name])
        return found

    def read(self, name: str) -> torch.Tensor:
        """The weight of this name: f32 if it is packed, else in the dtype of the file."""
        if name in self.files.place:
            return self.files.read(name)
        steps, values = self._steps(name), self._values(name)
        places = steps.groups.expand(values.shape)
        weight = values.float() - steps.zeros.float().gather(1, places)
        return weight.mul_(steps.scales.gather(1, places))

    def quant(self, name: str) -> Quant | None:
        """The format of a packed weight. Raises GraphError for one that no format holds."""
        return None if name in self.files.place else self._quant(name, self._steps(name))

    def read_quantised(self, name: str) -> Quantised:
        """A packed weight as the file has it."""
        steps, values = self._steps(name), self._values(name)
        quant = self._quant(name, steps)
        groups = values.shape[1] // (quant.group or values.shape[1])
        # Four bits with zero points are kept from 0 on; eight have to fit int8.
        shift = 0 if quant.bits == 4 and quant.offset else 1 << (quant.bits - 1)
        scales = _spread(steps.scales, groups)
        offsets = scales * (shift - _spread(steps.zeros, groups)) if quant.offset else None
        return Quantised(quant, (values - shift).to(torch.int8), scales, offsets)

    def check_dtypes(self, names: Iterable[str]) -> None:
        """Raises GraphError for a weight that is neither plain floats nor packed."""
        self.files.check_dtypes([name for name in names if name in self.files.place])

    def _quant(self, name: str, steps: Steps) -> Quant:
        k, groups = len(steps.groups), steps.scales.shape[1]
        size = k // groups
        if k % groups or not torch.equal(steps.groups, torch.arange(k) // size):
            raise GraphError(f"{self.files.folder}: the columns of {name!r} lie in other groups "
                             "than in a row (act-order, desc_act), which no format holds",
                             hint="--quantize none dequantises the weights, --quantize int4 "
                             "rounds them again")
        group = 0 if groups == 1 else next((g for g in sorted(GROUPS, reverse=True)
                                            if g and size % g == 0), None)
        if group is None:
            raise GraphError(f"{self.files.folder}: {name!r} has groups of {size}, which no format "
                             "has", hint="--quantize none dequantises the weights")
        symmetric = bool((steps.zeros == 1 << (self.packing.bits - 1)).all())
        return Quant(self.packing.bits, group, not symmetric,
                     steps.scale if symmetric else "f32")

    def _shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        each = WORD // self.packing.bits
        if len(stored) != 2:
            return ()
        rows, columns = stored
        if self.packing.method == "awq":
            return columns * each, rows
        return columns, rows * each

    def _values(self, name: str) -> torch.Tensor:
        """q: i16 [n, k]."""
        packed = self._part(f"{name.removesuffix('weight')}qweight")
        return _whole(packed, self.packing.bits, 1 if self._order else 0, self._order).t()

    def _steps(self, name: str) -> Steps:
        stem = name.removesuffix("weight")
        n, k = self._shape(self.files.shape(f"{stem}qweight"))
        scales, zeros = self._part(f"{stem}scales"), self._part(f"{stem}qzeros")
        groups = scales.shape[0] if scales.dim() == 2 else 0
        wanted = [groups, n * self.packing.bits // WORD]
        if not groups or list(scales.shape) != [groups, n] or list(zeros.shape) != wanted:
            raise GraphError(f"{self.files.folder}: {name!r} is [{n}, {k}], but its scales are "
                             f"{list(scales.shape)} and its zero points {list(zeros.shape)}; "
                             f"wanted: [groups, {n}] and [groups, {wanted[1]}]")
        return Steps(self._zeros(name, zeros), scales.float().t().contiguous(),
                     self._groups(stem, k, groups),
                     "f16" if scales.dtype == torch.float16 else "f32")

    @property
    def _order(self) -> tuple[int, ...] | None:
        return AWQ_ORDER if self.packing.method == "awq" else None

    def _zeros(self, name: str, packed: torch.Tensor) -> torch.Tensor:
        zeros = _whole(packed, self.packing.bits, 1, self._order).t()
        if not self.packing.shifted:
            return zeros
        if int(zeros.max()) == (1 << self.packing.bits) - 1:
            raise GraphError(f"{self.files.folder}: a zero point of {name!r} is stored as "
                             f"{int(zeros.max())}, which stands for 0 or for one more, by who "
                             "wrote it", hint="convert the model to checkpoint_format gptq_v2")
        return zeros + 1

    def _groups(self, stem: str, k: int, groups: int) -> torch.Tensor:
        """The group of every column: by g_idx where the file has it."""
        if f"{stem}g_idx" not in self.files.place:
            return (torch.arange(k) // max(k // groups, 1)).clamp(max=groups - 1)
        found = self._part(f"{stem}g_idx").long()
        if list(found.shape) != [k] or int(found.min()) < 0 or int(found.max()) >= groups:
            raise GraphError(f"{self.files.folder}: '{stem}g_idx' is {list(found.shape)} of "
                             f"{int(found.min())} to {int(found.max())}; wanted: [{k}] of 0 to "
                             f"{groups - 1}")
        return found

    def _part(self, name: str) -> torch.Tensor:
        if name not in self.files.place:
            raise GraphError(f"{self.files.folder}: the weight {name!r} is missing")
        return self.files.read(name)


def _whole(words: torch.Tensor, bits: int, axis: int,
           order: tuple[int, ...] | None) -> torch.Tensor:
    """Whole numbers from 32-bit words that hold several along an axis, the lowest bits first, or
    number i of each at place order[i]. i16 of two axes."""
    places = torch.tensor(order or range(WORD // bits), dtype=torch.int32) * bits
    shape = list(words.shape)
    shape[axis] *= len(places)
    spread = places[:, None] if axis == 0 else places
    numbers = words.unsqueeze(axis + 1) >> spread & (1 << bits) - 1
    return numbers.to(torch.int16).reshape(shape)


def _spread(numbers: torch.Tensor, groups: int) -> torch.Tensor:
    """One number for every one of more groups, in f32."""
    return numbers.float().repeat_interleave(groups // numbers.shape[1], 1)


__all__ = ["PackedWeights", "Packing", "read_packing"]
