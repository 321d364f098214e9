"""What ATB takes, as data: dtypes and formats of every tensor, fields of params, limits.

One table for versions 8.1 to 9.1; what only some of them have is not in it. Values that no dtype
of graphdsl stands for (i64, u32) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .atb import DataType, Enum, Field
from .target import SOCS

WITHOUT_BF16 = ("310p",)
MOST_DIMS = 8
MOST_TENSORS = 256
"""Inputs, outputs and internals of a graph, each."""
MOST_NODES = 1024
MOST_NAME = 128
NORM_BYTES = 32
"""What the last size of RmsNorm's tensors is a multiple of."""
NZ_WIDTH = 16
"""Columns of a tile of NZ, for dtypes of two bytes."""
ROPE_DIMS = (16, 4096)
SPLITS = (2, 3)
FA_HIDDEN = 16
"""What the sizes heads * dim of SelfAttention with a contiguous cache are multiples of."""
PAGED_DIM = 576
PAGED_WIDE_DIM, PAGED_WIDE_BLOCK = 256, 128
"""A head with more dims than the first needs blocks of at most the second."""
COMPRESSED = 128
"""The rows and columns of a compressed mask."""


@dataclass(frozen=True)
class Slot:
    """One tensor of an operation: `dtypes` has "T" where it is the operation's own dtype.
    `optional`: there only where the param asks for it; `host`: ATB reads it on the host."""

    name: str
    dtypes: tuple[str, ...]
    formats: tuple[str, ...] = ("nd",)
    optional: bool = False
    host: bool = False


@dataclass(frozen=True)
class Row:
    """One legal choice of dtypes and formats; T is one of `types`."""

    variant: str
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    types: tuple[str, ...]
    socs: tuple[str, ...]


def _slot(text: str) -> Slot:
    """`name:dtype/dtype@format/format`; after the name ? is optional and ! host."""
    spec, _, formats = text.partition("@")
    name, _, dtypes = spec.partition(":")
    return Slot(name.rstrip("?!"), tuple(dtypes.split("/")), tuple((formats or "nd").split("/")),
                "?" in name, "!" in name)


def _row(line: str) -> Row:
    variant, tensors, types, *socs = (part.strip() for part in line.split("|"))
    inputs, _, outputs = tensors.partition("->")
    return Row(variant, tuple(map(_slot, inputs.split())), tuple(map(_slot, outputs.split())),
               tuple(types.split()), tuple(socs[0].split()) if socs else SOCS)


_TABLE = """
Linear | x:T w:T@nd/nz bias?:T -> y:T | f16 bf16 | 910b
Linear | x:T w:T bias?:f32 -> y:T | f16 bf16 | 910b
Linear | x:T w:T@nd/nz bias?:T -> y:T | f16 | 310p
Linear | x:T w:T -> y:T | f32 | 910b
RmsNorm NORM | x:T gamma:T -> y:T | f16 bf16
RmsNorm PRENORM | x:T bias?:T res:T gamma:T -> y:T sum:T | f16 bf16
RmsNorm POSTNORM | x:T bias?:T res:T gamma:T -> y:T | f16 bf16
LayerNorm NORM | x:T gamma:T beta:T -> y:T | f16 f32 bf16
Rope | q:T k:T cos:T sin:T seqLen:i32 -> q:T k:T | f16 bf16
Rope | q:T k:T cos:f32 sin:f32 seqLen:i32 -> q:T k:T | f16
SelfAttention PA_ENCODER | q:T k:T v:T mask?:T@nd/nz seqLen!:i32 slopes?:f32 -> out:T | f16 bf16
SelfAttention FA | q:T k:T v:T cacheK:T cacheV:T mask?:T@nd/nz tokenOffset!:i32 seqLen!:i32 \
layerId:i32 -> out:T | f16 bf16 | 910b
SelfAttention FA | q:T k:T v:T cacheK:T@nz cacheV:T@nz mask?:T@nd/nz tokenOffset!:i32 seqLen!:i32 \
layerId:i32 -> out:T | f16 | 310p
SelfAttention K_BYPASS_V_BYPASS | q:T cacheK:T cacheV:T mask?:T@nd/nz tokenOffset!:i32 seqLen!:i32 \
layerId:i32 -> out:T | f16 bf16 | 910b
SelfAttention K_BYPASS_V_BYPASS | q:T cacheK:T@nz cacheV:T@nz mask?:T@nd/nz tokenOffset!:i32 \
seqLen!:i32 layerId:i32 -> out:T | f16 | 310p
PagedAttention | q:T kCache:T vCache:T blockTables:i32 contextLens!:i32 mask?:T@nd/nz -> out:T | \
f16 bf16 | 910b
PagedAttention | q:T kCache:T@nz vCache:T@nz blockTables:i32 contextLens!:i32 mask?:T@nd/nz \
-> out:T | f16 | 310p
ReshapeAndCache | k:T v:T kCache:T vCache:T slots:i32 -> kCache:T vCache:T | f16 bf16 int8 | 910b
ReshapeAndCache NZ | k:T v:T kCache:T@nz vCache:T@nz slots:i32 -> kCache:T@nz vCache:T@nz | \
f16 bf16 int8 | 910b
ReshapeAndCache | k:T v:T kCache:T@nz vCache:T@nz slots:i32 -> kCache:T@nz vCache:T@nz | \
f16 int8 | 310p
KvCache | newKv:T layerId:i32 past:T@nd/nz tokenOffset:i32 seqLen:i32 -> | f16 int8
Elewise CAST | x:f16 -> y:f32 | f32
Elewise CAST | x:f32 -> y:f16 | f32
Elewise CAST | x:bf16 -> y:f32 | f32
Elewise CAST | x:f32 -> y:bf16 | f32
Elewise ADD | x:T y:T -> z:T | f16 f32 bf16 i32
Elewise MUL | x:T y:T -> z:T | f16 bf16
Elewise SUB | x:T y:T -> z:T | f16 bf16
Elewise REALDIV | x:T y:T -> z:T | f16 f32 bf16
Elewise MULS | x:T -> y:T | f16 f32 bf16
Elewise COS | x:T -> y:T | f16 f32 bf16
Elewise SIN | x:T -> y:T | f16 f32 bf16
Elewise TANH | x:T -> y:T | f16 bf16
Elewise NEG | x:T -> y:T | f16 bf16
Activation RELU | x:T -> y:T | f32 bf16
Activation GELU | x:T -> y:T | f16 f32 bf16
Activation FAST_GELU | x:T -> y:T | f16 bf16
Activation SWISH | x:T -> y:T | f16 bf16
Activation SWIGLU_FORWARD | x:T -> y:T | f16 f32 bf16
Split 2 | x:T -> first:T second:T | f16 bf16
Split 3 | x:T -> first:T second:T third:T | f16 bf16
Concat | x:T y:T -> z:T | f16 bf16
Transpose | x:T -> y:T | f16 bf16 int8 i32
Softmax | x:T -> y:T | f16 f32 bf16
Gather | table:T indices:i32 -> y:T | f16 bf16 f32 i32
AllReduce | x:T -> y:T | f16 bf16 f32
LinearParallel | x:T w:T -> y:T | f16 bf16 | 910b
"""

ROWS: tuple[Row, ...] = tuple(map(_row, _TABLE.replace("\\\n", "").strip().splitlines()))

MASKS = ("MASK_TYPE_UNDEFINED", "MASK_TYPE_NORM", "MASK_TYPE_ALIBI", "MASK_TYPE_NORM_COMPRESS",
         "MASK_TYPE_ALIBI_COMPRESS", "MASK_TYPE_ALIBI_COMPRESS_SQRT",
         "MASK_TYPE_ALIBI_COMPRESS_LEFT_ALIGN", "MASK_TYPE_SLIDING_WINDOW_NORM",
         "MASK_TYPE_SLIDING_WINDOW_COMPRESS")
COMPRESSED_MASKS = tuple(mask for mask in MASKS if "_COMPRESS" in mask)
SLOPED_MASKS = tuple(mask for mask in MASKS if "ALIBI_COMPRESS" in mask)
SLIDING_MASKS = tuple(mask for mask in MASKS if "SLIDING" in mask)

_UNSET = DataType("")

FIELDS: Mapping[str, Mapping[str, Field]] = {
    "Linear": {"transposeA": False, "transposeB": True, "hasBias": True, "outDataType": _UNSET},
    "RmsNorm": {"layerType": Enum("RMS_NORM_UNDEFINED"), "normParam.epsilon": 1e-5,
                "normParam.precisionMode": Enum("HIGH_PRECISION_MODE"),
                "normParam.modelType": Enum("LLAMA_MODEL"), "preNormParam.epsilon": 1e-5,
                "preNormParam.hasBias": False, "postNormParam.epsilon": 1e-5,
                "postNormParam.hasBias": False},
    "LayerNorm": {"layerType": Enum("LAYER_NORM_UNDEFINED"), "normParam.epsilon": 1e-5,
                  "normParam.beginNormAxis": 0, "normParam.beginParamsAxis": 0},
    "Rope": {"rotaryCoeff": 4, "cosFormat": 0},
    "SelfAttention": {"headNum": 0, "kvHeadNum": 0, "qScale": 1.0, "qkScale": 1.0,
                      "isTriuMask": 0, "calcType": Enum("UNDEFINED"),
                      "kernelType": Enum("KERNELTYPE_DEFAULT"),
                      "maskType": Enum("MASK_TYPE_UNDEFINED"),
                      "kvcacheCfg": Enum("K_CACHE_V_CACHE"), "windowSize": 0,
                      "outDataType": _UNSET},
    "PagedAttention": {"headNum": 0, "kvHeadNum": 0, "qkScale": 1.0,
                       "maskType": Enum("UNDEFINED"), "outDataType": _UNSET},
    "ReshapeAndCache": {"kvCacheCfg": Enum("K_CACHE_V_CACHE")},
    "KvCache": {},
    "Elewise": {"elewiseType": Enum("ELEWISE_UNDEFINED"), "mulsParam.varAttr": 0.0,
                "outTensorType": _UNSET},
    "Activation": {"activationType": Enum("ACTIVATION_UNDEFINED", free=True), "scale": 1.0,
                   "dim": -1, "geluMode": Enum("TANH_MODE")},
    "Split": {"splitDim": 0, "splitNum": 2, "splitSizes": ()},
    "Concat": {"concatDim": 0},
    "Transpose": {"perm": ()},
    "Softmax": {"axes": ()},
    "Gather": {"axis": 0, "batchDims": 0},
    "AllReduce": {"rank": 0, "rankSize": 0},
    "LinearParallel": {"transWeight": True, "rank": 0, "rankSize": 0, "hasResidual": False},
}
"""The fields of an operation's param and their defaults in ATB."""

ENUMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RmsNorm", "layerType"): ("RMS_NORM_NORM", "RMS_NORM_PRENORM", "RMS_NORM_POSTNORM"),
    ("RmsNorm", "normParam.precisionMode"): ("HIGH_PRECISION_MODE", "HIGH_PERFORMANCE_MODE"),
    ("RmsNorm", "normParam.modelType"): ("LLAMA_MODEL", "GEMMA_MODEL"),
    ("LayerNorm", "layerType"): ("LAYER_NORM_NORM",),
    ("SelfAttention", "calcType"): ("UNDEFINED", "ENCODER", "DECODER", "PA_ENCODER"),
    ("SelfAttention", "kernelType"): ("KERNELTYPE_DEFAULT", "KERNELTYPE_HIGH_PRECISION"),
    ("SelfAttention", "maskType"): MASKS,
    ("SelfAttention", "kvcacheCfg"): ("K_CACHE_V_CACHE", "K_BYPASS_V_BYPASS"),
    ("PagedAttention", "maskType"): ("UNDEFINED", "MASK_TYPE_NORM", "MASK_TYPE_ALIBI",
                                     "MASK_TYPE_NORM_COMPRESS"),
    ("ReshapeAndCache", "kvCacheCfg"): ("K_CACHE_V_CACHE", "K_CACHE_V_CACHE_NZ"),
    ("Elewise", "elewiseType"): tuple(
        f"ELEWISE_{row.variant.split()[1]}" for row in ROWS if row.variant.startswith("Elewise")),
    ("Activation", "activationType"): tuple(
        f"ACTIVATION_{row.variant.split()[1]}" for row in ROWS
        if row.variant.startswith("Activation")),
    ("Activation", "geluMode"): ("TANH_MODE", "NONE_MODE"),
}
"""The enumerators that a field may have. ATB has others, for which its table has no line."""

EXPLICIT: Mapping[str, tuple[str, ...]] = {
    "Linear": ("transposeB", "hasBias"),
    "RmsNorm": ("layerType",),
    "LayerNorm": ("layerType", "normParam.beginNormAxis", "normParam.beginParamsAxis"),
    "Rope": ("rotaryCoeff",),
    "SelfAttention": ("headNum", "kvHeadNum", "qkScale", "calcType", "maskType"),
    "PagedAttention": ("headNum", "kvHeadNum", "qkScale"),
    "Elewise": ("elewiseType",),
    "Activation": ("activationType",),
    "Split": ("splitDim", "splitNum"),
    "Concat": ("concatDim",),
    "Transpose": ("perm",),
    "Softmax": ("axes",),
    "AllReduce": ("rank", "rankSize"),
    "LinearParallel": ("transWeight", "rank", "rankSize"),
}
"""Fields whose default surprises, or says that nothing was chosen: they have to be set."""

IN_PLACE: Mapping[str, Mapping[str, str]] = {
    "ReshapeAndCache": {"kCache": "kCache", "vCache": "vCache"},
}
"""Outputs that have to be, and with them the inputs that they are."""

MAY_BE_IN_PLACE = ("Elewise", "Activation")
"""Operations that may write into an input of the same shape and dtype."""
