"""The catalogue: all fusion rules, family by family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphdsl.passes import (
    activation,
    attention,
    linear,
    norm,
    norm_rope,
    position,
    softmax,
    views,
)
from graphdsl.passes.linear import LINEARS, MergeLinears, SplitLinear
from graphdsl.passes.rules import Rule

if TYPE_CHECKING:
    from graphdsl.passes.base import Target

FUSIONS: tuple[Rule, ...] = (
    *linear.RULES,      # a bias is a part of its linear before anything else adds to it
    *norm.RULES,        # a sum that feeds a norm is claimed before anything else takes it
    *softmax.RULES,     # what an attention written as maths is made of
    *activation.RULES,  # gated forms
    *position.RULES,    # rope and the KV appends
    *attention.RULES,   # what a softmax weighs
    *views.RULES,       # what stands between the parts of those two
    *norm_rope.RULES,   # grows out of what position has made
)
"""The rules that are offered every level of Operations, in the order in which they are tried."""

PASS_RULES = (
    "AttentionEpilogue", "CommonSubexpression", "Fold", "Hoist", "JoinExperts", "KVLayout",
    "KeepF32", "Loop", "MatmulEpilogue", "MatmulPrologue", "Quantise", "Relayout", "Roll",
    "RotateRepeat", "Shard", "Static",
)
"""What passes report that find their places without a pattern."""


def splits(target: Target) -> tuple[Rule, ...]:
    """The rules that take linears apart for an epilogue."""
    meeting = _meeting(target)
    return tuple(SplitLinear(op, meeting) for op in LINEARS) if meeting > 1 else ()


def groups(target: Target) -> tuple[Rule, ...]:
    """The group rules, which come after the fusions of a level: they take what is left over. What
    an epilogue wants apart is taken apart before linears are merged."""
    return (*splits(target), *(MergeLinears(op, _meeting(target)) for op in LINEARS))


def _meeting(target: Target) -> int:
    """How many linears may meet in an epilogue of the target."""
    return target.epilogue_matmuls if target.fuses_loops else 1
