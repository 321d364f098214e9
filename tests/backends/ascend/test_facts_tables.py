"""Dtypes and formats that ATB's table has are taken, all others are error 13."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from opscase import (
    BF16,
    F16,
    F32,
    NEEDS_COMPILER,
    NO_BF16,
    NOT_IN_TABLE,
    Arg,
    AtbError,
    Calc,
    Field,
    Given,
    Norm,
    Ops,
    host,
    nz,
)

from graphdsl.backends.ascend import tables
from graphdsl.lazy import torch_dtype

pytestmark = NEEDS_COMPILER

I8, I32, I64, U32 = torch.int8, torch.int32, torch.int64, torch.uint32
ALL = (F16, BF16, F32, I8, I32, I64, U32)

Make = Callable[[torch.dtype], tuple[Arg, ...]]


def z(*shape: int) -> Callable[[torch.dtype], torch.Tensor]:
    return lambda dtype: torch.zeros(shape, dtype=dtype)


def same(*shapes: tuple[int, ...]) -> Make:
    """Inputs of these shapes, all of the dtype."""
    return lambda dtype: tuple(torch.zeros(shape, dtype=dtype) for shape in shapes)


LENGTH = torch.tensor([5], dtype=I32)


def turned(angles: torch.dtype | None = None, length: torch.dtype = I32) -> Make:
    return lambda dtype: (*same((5, 64), (5, 32))(dtype), *same((5, 32), (5, 32))(angles or dtype),
                          LENGTH.to(length))


def encoded(dtype: torch.dtype) -> tuple[Arg, ...]:
    return *same((5, 64), (5, 32), (5, 32))(dtype), host([5])


def _kept(dtype: torch.dtype, nd: tuple[int, ...], tiles: tuple[int, ...], small: bool) -> Arg:
    """A cache; tiles of int8 have 32 columns."""
    if dtype is I8:
        tiles = (*tiles[:-3], tiles[-3] // 2, tiles[-2], 32)
    return nz(torch.zeros(tiles, dtype=dtype)) if small else torch.zeros(nd, dtype=dtype)


def contiguous(small: bool) -> Make:
    def make(dtype: torch.dtype) -> tuple[Arg, ...]:
        caches = [_kept(dtype, (1, 1, 16, 32), (1, 1, 2, 16, 16), small) for _ in range(2)]
        return *same((5, 64), (5, 32), (5, 32))(dtype), *caches, host([7]), host([5]), LENGTH
    return make


def paged(small: bool) -> Make:
    def make(dtype: torch.dtype) -> tuple[Arg, ...]:
        caches = [_kept(dtype, (2, 16, 2, 16), (2, 2, 16, 16), small) for _ in range(2)]
        contexts = Given(LENGTH, host=True)
        return torch.zeros(1, 4, 16, dtype=dtype), *caches, LENGTH[None], contexts
    return make


def append(tiles: bool) -> Make:
    def make(dtype: torch.dtype) -> tuple[Arg, ...]:
        caches = [_kept(dtype, (2, 16, 2, 16), (2, 2, 16, 16), tiles) for _ in range(2)]
        return *same((1, 2, 16), (1, 2, 16))(dtype), *caches, LENGTH
    return make


def kept(dtype: torch.dtype) -> tuple[Arg, ...]:
    past = torch.zeros(1, 1, 16, 32, dtype=dtype)
    return torch.zeros(5, 32, dtype=dtype), LENGTH, past, LENGTH, LENGTH


HEADS = {"headNum": 4, "kvHeadNum": 2}
PAIR, ONE = same((4, 32), (4, 32)), same((4, 32))
VECTOR = same((4, 32), (32,))


@dataclass(frozen=True)
class Line:
    """A line of ATB's table: which dtypes an operation takes. `line` is the one of Python."""

    op: str
    make: Make
    on_910b: tuple[torch.dtype, ...]
    on_310p: tuple[torch.dtype, ...]
    fields: dict[str, Field] = field(default_factory=dict)
    line: str = ""


def _elewise(kind: int, name: str, make: Make, *taken: torch.dtype) -> Line:
    return Line("Elewise", make, taken, taken, {"elewiseType": kind}, f"Elewise {name}")


def _activation(kind: int, name: str, *taken: torch.dtype) -> Line:
    return Line("Activation", ONE, taken, taken, {"activationType": kind}, f"Activation {name}")


LINES = {
    "linear": Line("Linear", same((4, 32), (16, 32)), (F16, BF16, F32), (F16,),
                   {"hasBias": False}, "Linear"),
    "linear with a bias": Line("Linear", same((4, 32), (16, 32), (16,)), (F16, BF16), (F16,)),
    "linear with an f32 bias": Line(
        "Linear", lambda d: (*same((4, 32), (16, 32))(d), z(16)(F32)), (F16, BF16), ()),
    "rms_norm": Line("RmsNorm", VECTOR, (F16, BF16), (F16, BF16), {"layerType": Norm.NORM},
                     "RmsNorm NORM"),
    "rms_norm of a sum": Line("RmsNorm", same((4, 32), (4, 32), (32,)), (F16, BF16), (F16, BF16),
                              {"layerType": Norm.PRENORM}, "RmsNorm PRENORM"),
    "post norm": Line("RmsNorm", same((4, 32), (4, 32), (32,)), (F16, BF16), (F16, BF16),
                      {"layerType": Norm.POSTNORM}, "RmsNorm POSTNORM"),
    "layer_norm": Line("LayerNorm", same((4, 32), (32,), (32,)), (F16, BF16, F32),
                       (F16, BF16, F32), {"layerType": Norm.NORM, "normParam__beginNormAxis": 1},
                       "LayerNorm NORM"),
    "rope": Line("Rope", turned(), (F16, BF16), (F16, BF16), {"rotaryCoeff": 2}),
    "rope with f32 angles": Line("Rope", turned(F32), (F16,), (F16,), {"rotaryCoeff": 2}),
    "rope with u32 lengths": Line("Rope", turned(length=U32), (F16, BF16), (F16, BF16),
                                  {"rotaryCoeff": 2}),
    "rope with i64 lengths": Line("Rope", turned(length=I64), (), (), {"rotaryCoeff": 2}),
    "pa_encoder": Line("SelfAttention", encoded, (F16, BF16), (F16, BF16),
                       {**HEADS, "calcType": Calc.PA_ENCODER}, "SelfAttention PA_ENCODER"),
    "contiguous": Line("SelfAttention", contiguous(False), (F16, BF16), (), HEADS,
                       "SelfAttention FA"),
    "contiguous in tiles": Line("SelfAttention", contiguous(True), (), (F16, BF16), HEADS),
    "paged": Line("PagedAttention", paged(False), (F16, BF16), (), HEADS, "PagedAttention"),
    "paged in tiles": Line("PagedAttention", paged(True), (), (F16, BF16), HEADS),
    "append": Line("ReshapeAndCache", append(False), (F16, BF16, I8), (), {}, "ReshapeAndCache"),
    "append in tiles": Line("ReshapeAndCache", append(True), (), (F16, BF16)),
    "append in tiles of a 910b": Line("ReshapeAndCache", append(True), (F16, BF16), (),
                                      {"kvCacheCfg": 2}),
    "kv_cache": Line("KvCache", kept, (F16, I8), (F16, I8), {}, "KvCache"),
    "add": _elewise(8, "ADD", PAIR, F16, BF16, F32, I32, I64),
    "mul": _elewise(9, "MUL", PAIR, F16, BF16),
    "sub": _elewise(15, "SUB", PAIR, F16, BF16, I64),
    "realdiv": _elewise(10, "REALDIV", PAIR, F16, BF16, F32),
    "muls": _elewise(2, "MULS", ONE, F16, BF16, F32),
    "cos": _elewise(3, "COS", ONE, F16, BF16, F32),
    "sin": _elewise(4, "SIN", ONE, F16, BF16, F32),
    "neg": _elewise(5, "NEG", ONE, F16, BF16),
    "tanh": _elewise(20, "TANH", ONE, F16, BF16),
    "swish": _activation(4, "SWISH", F16, BF16),
    "fast_gelu": _activation(3, "FAST_GELU", F16, BF16),
    "swiglu": _activation(6, "SWIGLU_FORWARD", F16, BF16, F32),
    "gelu": _activation(2, "GELU", F16, BF16, F32),
    "relu": _activation(1, "RELU", BF16, F32),
    "split in 2": Line("Split", ONE, (F16, BF16, I64), (F16, BF16, I64), {}, "Split 2"),
    "split in 3": Line("Split", same((3, 32)), (F16, BF16), (F16, BF16), {"splitNum": 3},
                       "Split 3"),
    "concat": Line("Concat", PAIR, (F16, BF16), (F16, BF16), {}, "Concat"),
    "transpose": Line("Transpose", ONE, (F16, BF16, I8, I32, I64), (F16, BF16, I8, I32, I64),
                      {"perm": (1, 0)}, "Transpose"),
    "softmax": Line("Softmax", ONE, (F16, BF16, F32), (F16, BF16, F32), {"axes": (1,)},
                    "Softmax"),
    "gather": Line("Gather", lambda d: (z(9, 8)(d), LENGTH), (F16, BF16, F32, I32, I64, U32),
                   (F16, BF16, F32, I32, I64, U32), {}, "Gather"),
}


@pytest.fixture(params=["910b", "310p"])
def soc(request: pytest.FixtureRequest, ops: Ops) -> Iterator[str]:
    ops.soc({"910b": "Ascend910B4", "310p": "Ascend310P3"}[request.param])
    yield request.param
    ops.soc("Ascend910B")


def answer(ops: Ops, line: Line, inputs: tuple[Arg, ...]) -> int:
    """0, or the code that the shapes of these inputs are refused with."""
    try:
        ops.infer(line.op, *inputs, **line.fields)
    except AtbError as error:
        return error.code
    return 0


@pytest.mark.parametrize("name", LINES)
def test_dtypes_of_the_table(name: str, soc: str, ops: Ops) -> None:
    """A 310P refuses bf16 of a line that has it too, after the table."""
    line = LINES[name]
    taken = line.on_910b if soc == "910b" else line.on_310p
    codes = {dtype: answer(ops, line, line.make(dtype)) for dtype in ALL}
    wanted = {dtype: 0 if dtype in taken else NOT_IN_TABLE for dtype in ALL}
    if soc == "310p" and BF16 in taken:
        wanted[BF16] = NO_BF16
    assert codes == wanted


@pytest.mark.parametrize("name", [name for name, line in LINES.items() if line.line])
def test_the_table_of_python_has_the_same_dtypes(name: str) -> None:
    line = LINES[name]
    known = {"f16": F16, "bf16": BF16, "f32": F32, "i32": I32, "int8": I8}
    for soc, taken in (("910b", line.on_910b), ("310p", line.on_310p)):
        rows = [row for row in tables.ROWS if row.variant == line.line and soc in row.socs
                and all("nz" not in slot.formats or slot.optional or "nd" in slot.formats
                        for slot in row.inputs)]
        found = {known[dtype] for row in rows for dtype in row.types}
        missing = {BF16} if soc == "310p" else set()
        assert found - missing == set(taken) & set(known.values()) - missing, soc


@pytest.mark.parametrize("given", ALL, ids=str)
def test_casts_of_the_table(given: torch.dtype, ops: Ops) -> None:
    """f16 and f32, bf16 and f32, i32 and i64: each way, and no other."""
    taken = {(F16, F32), (F32, F16), (BF16, F32), (F32, BF16), (I32, I64), (I64, I32)}
    numbers = {F32: 0, F16: 1, I8: 2, I32: 3, I64: 9, BF16: 27}
    x = torch.zeros(4, 32, dtype=given)
    found = {(given, wanted) for wanted, number in numbers.items()
             if answer(ops, Line("Elewise", ONE, (), (), {"elewiseType": 1,
                                                          "outTensorType": number}), (x,)) == 0}
    assert found == {pair for pair in taken if pair[0] is given}


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("bias", ["", "same", "f32"])
def test_formats_of_linear_weights(dtype: str, bias: str, ops: Ops) -> None:
    """NZ for f16 and bf16 without a bias or with one of the same dtype; never for f32."""
    kind = torch_dtype(dtype)
    added = {"": (), "same": (torch.zeros(16, dtype=kind),), "f32": (torch.zeros(16),)}[bias]
    line = Line("Linear", ONE, (), (), {"hasBias": bool(bias)})
    inputs = (torch.zeros(4, 32, dtype=kind), nz(torch.zeros(1, 2, 16, 16, dtype=kind)), *added)
    fits = dtype != "f32" and bias != "f32"
    assert answer(ops, line, inputs) == (0 if fits else NOT_IN_TABLE)


@pytest.mark.parametrize("name", [name for name, line in LINES.items()
                                  if line.op not in ("SelfAttention", "PagedAttention",
                                                     "ReshapeAndCache", "KvCache", "Linear")])
def test_other_operations_take_nd_alone(name: str, ops: Ops) -> None:
    line = LINES[name]
    dtype = (line.on_910b or (F16,))[0]
    for i, arg in enumerate(line.make(dtype)):
        inputs = list(line.make(dtype))
        assert isinstance(arg, torch.Tensor)
        if arg.dim() > 1:
            inputs[i] = Given(torch.zeros(1, 2, 16, 16, dtype=arg.dtype), format=29)
            assert answer(ops, line, tuple(inputs)) == NOT_IN_TABLE


def test_a_mask_may_be_nd_or_nz(ops: Ops) -> None:
    fields = {**HEADS, "calcType": Calc.PA_ENCODER, "maskType": 3, "isTriuMask": 1}
    q, k, v, lengths = encoded(F16)
    for mask in (torch.zeros(128, 128, dtype=F16), nz(torch.zeros(1, 8, 128, 16, dtype=F16))):
        assert ops.infer("SelfAttention", q, k, v, mask, lengths, **fields) == [(5, 64)]


def test_an_f32_llama_layer_cannot_run(ops: Ops) -> None:
    """Its norm, rope, attention and product of gate and up have no f32."""
    for name in ("rms_norm", "rms_norm of a sum", "rope", "pa_encoder", "contiguous", "paged",
                 "append", "mul", "swish"):
        line = LINES[name]
        assert answer(ops, line, line.make(F32)) == NOT_IN_TABLE


def test_sizes_of_nz(ops: Ops) -> None:
    """{b, n / 16, m up to a multiple of 16, 16}: ND {8, 100, 30} is {8, 2, 112, 16}."""
    assert ops.infer("Transdata", torch.zeros(8, 100, 30, dtype=F16), transdataType=2) == [
        (8, 2, 112, 16)]


def test_a_weight_in_nz_is_1_k16_n_16(ops: Ops) -> None:
    """And as its logical 2, or 3 dims; transposed or not."""
    x = torch.zeros(4, 32, dtype=F16)
    for shape in ((1, 2, 48, 16), (2, 48, 16), (48, 32)):
        assert ops.infer("Linear", x, nz(torch.zeros(shape, dtype=F16)), hasBias=False) == [
            (4, 48)]
    for shape in ((1, 3, 32, 16), (3, 32, 16), (32, 48)):
        assert ops.infer("Linear", x, nz(torch.zeros(shape, dtype=F16)), hasBias=False,
                         transposeB=False) == [(4, 48)]
