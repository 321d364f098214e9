"""What the passes need to know of ATB: Target, for both kinds of SoC."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.passes.base import Target

from .angles import AngleTable
from .weight_format import WeightFormat

SOCS = ("910b", "310p")
"""910b: Atlas A2 and A3, caches as they are. 310p: caches in tiles (NZ), f16 alone."""
BLOCK = 128
"""Slots of a block of a paged cache, where nobody says how many."""

TAKEN = frozenset({"linear", "rms_norm", "add_rms_norm", "layer_norm", "silu", "gelu",
                   "gelu_tanh", "relu", "sigmoid", "swiglu", "rope", "softmax"})
"""Operations that ATB has whole, and those that are refused by their name rather than by that of
a kernel in them."""


def taken(soc: str) -> frozenset[str]:
    """The Operations that are not expanded: off A2, ATB's swiglu is slower than its parts."""
    return TAKEN if soc == "910b" else TAKEN - {"swiglu"}


def check_soc(soc: str) -> None:
    """Raises GraphError for a SoC that is not known."""
    if soc not in SOCS:
        raise GraphError(f"no SoC {soc}", hint=f"SoCs: {', '.join(SOCS)}")


def target(soc: str = "910b") -> Target:
    """The Target of a SoC. Raises GraphError for an unknown one."""
    check_soc(soc)
    storage = "nz" if soc == "310p" else ""
    narrow = frozenset({"f16"} if soc == "310p" else {"f16", "bf16"})
    return Target("ascend", takes=taken(soc), kv_order="bsnd", kv_orders=frozenset({"bsnd"}),
                  kv_policies=frozenset({"contiguous", "paged"}), kv_policy="paged",
                  kv_block=BLOCK, kv_storages=frozenset({storage}), kv_storage=storage,
                  dtypes=narrow | {"f32"}, layer_dtypes=narrow, layer_dtype="f16",
                  model_dtype="f16",
                  why_not=(("f32", "ATB's RmsNorm, Rope, attention and MUL take f16 and bf16 only"),
                           ("bf16", "a 310p has none")),
                  takes_static=False, zero_padding=False, padded_policies=frozenset({"paged"}),
                  fuses_loops=False, epilogue_matmuls=0, splits_vocabulary=False,
                  passes=(AngleTable(), WeightFormat("nz" if soc == "310p" else "nd")))


__all__ = ["BLOCK", "SOCS", "TAKEN", "check_soc", "taken", "target"]
