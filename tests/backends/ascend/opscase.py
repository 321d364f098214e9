"""Runs single operations of the emulation on torch tensors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import pytest
import torch

import graphdsl.backends.ascend.emulation_build as building

DRIVER = Path(__file__).parent / "emulation" / "ops_driver.cpp"
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
DTYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.int32: 3, torch.uint32: 8,
          torch.int64: 9, torch.bfloat16: 27}
ND, NZ = 2, 29
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-5}

INTS = torch.int32
SIXTEEN = pytest.mark.parametrize("dtype", [F16, BF16], ids=["f16", "bf16"])
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

INVALID_PARAM, WRONG_NUMBER, NO_BF16, INVALID_TENSOR_DIM, SIZE = 1, 5, 6, 8, 9
NOT_IN_TABLE, TENSOR_ADDR, DIM_NUM = 13, 14, 16


class Norm(IntEnum):
    """RmsNormParam::RmsNormType and LayerNormParam::LayerNormType."""

    NORM, PRENORM, POSTNORM = 1, 2, 3


class Calc(IntEnum):
    """SelfAttentionParam::CalcType."""

    UNDEFINED, ENCODER, DECODER, PA_ENCODER, PREFIX_ENCODER = range(5)


class MaskType(IntEnum):
    """SelfAttentionParam::MaskType."""

    UNDEFINED, NORM, ALIBI, NORM_COMPRESS, ALIBI_COMPRESS = range(5)


COMPRESSED = {"maskType": MaskType.NORM_COMPRESS, "isTriuMask": 1}


class Plain(ctypes.Structure):
    """A tensor as the driver reads it."""

    _fields_ = (("dtype", ctypes.c_int32), ("format", ctypes.c_int32), ("dims", ctypes.c_int32),
                ("sizes", ctypes.c_int64 * 8), ("device", ctypes.c_void_p),
                ("host", ctypes.c_void_p))


@dataclass(frozen=True, eq=False)
class Given:
    """An input with its format and where its data is."""

    tensor: torch.Tensor
    format: int = ND
    device: bool = True
    host: bool = False


Arg = torch.Tensor | Given
Field = bool | int | float | Sequence[int]


def nz(tensor: torch.Tensor) -> Given:
    return Given(tensor, NZ)


def host(values: Sequence[int] | Sequence[Sequence[int]]) -> Given:
    """An input whose values ATB reads on the host."""
    return Given(torch.tensor(values, dtype=torch.int32), device=False, host=True)


class AtbError(Exception):
    """What an operation of the emulation said no with."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code, self.sentence = code, sentence


def plain_of(arg: Arg) -> Plain:
    given = arg if isinstance(arg, Given) else Given(arg)
    tensor = given.tensor
    assert tensor.is_contiguous()
    sizes = (ctypes.c_int64 * 8)(*tensor.shape)
    data = tensor.data_ptr()
    return Plain(DTYPES[tensor.dtype], given.format, tensor.dim(), sizes,
                 data if given.device else None, data if given.host else None)


def _text(value: Field) -> str:
    if isinstance(value, Sequence):
        return " ".join(map(str, value))
    return str(float(value) if isinstance(value, float) else int(value))


class Ops:
    """The driver, linked with the emulation."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.ops_error.restype = ctypes.c_char_p

    def soc(self, name: str) -> None:
        self.library.ops_soc(name.encode())

    def create(self, name: str, **fields: Field) -> ctypes.c_void_p:
        """An operation; a field in a struct is written with __ for the dot."""
        lines = "\n".join(f"{key.replace('__', '.')}={_text(v)}" for key, v in fields.items())
        handle = ctypes.c_void_p()
        self._check(self.library.ops_create(name.encode(), lines.encode(), ctypes.byref(handle)))
        return handle

    def __call__(self, name: str, *inputs: Arg, in_place: Sequence[int] = (),
                 **fields: Field) -> tuple[torch.Tensor, ...]:
        """Its outputs. `in_place` are the inputs that the outputs are."""
        handle = self.create(name, **fields)
        try:
            return self._run(handle, [plain_of(arg) for arg in inputs],
                             [arg.tensor if isinstance(arg, Given) else arg for arg in inputs],
                             in_place)
        finally:
            self.library.ops_destroy(handle)

    def infer(self, name: str, *inputs: Arg, **fields: Field) -> list[tuple[int, ...]]:
        """The shapes of its outputs; nothing is computed."""
        handle = self.create(name, **fields)
        try:
            made = self.shapes(handle, [plain_of(arg) for arg in inputs])
            return [tuple(desc.sizes[:desc.dims]) for desc in made]
        finally:
            self.library.ops_destroy(handle)

    def refused(self, name: str, *inputs: Arg, **fields: Field) -> AtbError:
        """Why an operation was not made or not run."""
        with pytest.raises(AtbError, match="Operation: ") as caught:
            self(name, *inputs, **fields)
        return caught.value

    def shapes(self, handle: ctypes.c_void_p, inputs: list[Plain]) -> list[Plain]:
        """What an operation makes of inputs that need not be in memory."""
        given, made = (Plain * len(inputs))(*inputs), (Plain * 8)()
        count = ctypes.c_int32()
        self._check(self.library.ops_infer(handle, given, len(inputs), made, ctypes.byref(count)))
        return made[:count.value]

    def _run(self, handle: ctypes.c_void_p, inputs: list[Plain], tensors: list[torch.Tensor],
             in_place: Sequence[int]) -> tuple[torch.Tensor, ...]:
        made = self.shapes(handle, inputs)
        types = {code: dtype for dtype, code in DTYPES.items()}
        outputs = [tensors[index] for index in in_place]
        for desc in made[len(outputs):]:
            outputs.append(torch.full(desc.sizes[:desc.dims], 77, dtype=types[desc.dtype]))
        for desc, tensor in zip(made, outputs, strict=True):
            assert tuple(desc.sizes[:desc.dims]) == tuple(tensor.shape)
            desc.device = tensor.data_ptr()
        self._check(self.library.ops_execute(
            handle, (Plain * len(inputs))(*inputs), len(inputs), (Plain * len(made))(*made),
            len(made)))
        return tuple(outputs)

    def _check(self, status: int) -> None:
        if status != 0:
            raise AtbError(status, self.library.ops_error().decode())


def link_ops(archive: Path, folder: Path, flags: Sequence[str] = building.FLAGS) -> Path:
    library = folder / "ops.so"
    command = ["g++", *flags, "-O1", "-fvisibility=default", "-shared",
               f"-I{building.INCLUDE}", str(DRIVER), str(archive), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return library


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Equal within the dtype's rounding, against the largest value."""
    bound = TOLERANCE[dtype or got.dtype] * max(float(want.abs().max()), 1e-6)
    difference = float((got.double() - want.double()).abs().max())
    assert difference <= bound, f"{difference} > {bound}"


def random(*shape: int, dtype: torch.dtype = F16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)


def to_nz(matrix: torch.Tensor) -> torch.Tensor:
    """[..., rows, columns] as [..., columns / 16, rows, 16], rows and columns padded with NaN."""
    rows, columns = matrix.shape[-2:]
    pad = (0, -columns % 16, 0, -rows % 16)
    whole = torch.nn.functional.pad(matrix.float(), pad, value=float("nan")).to(matrix.dtype)
    parts = whole.reshape(*whole.shape[:-1], -1, 16)
    return parts.transpose(-3, -2).contiguous()
