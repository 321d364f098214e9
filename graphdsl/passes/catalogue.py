"""The catalogue: all fusion rules, family by family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphdsl.passes import activation, linear, norm, norm_rope, position, softmax
from graphdsl.passes.linear import LINEARS, MergeLinears
from graphdsl.passes.rules import Rule

if TYPE_CHECKING:
    from graphdsl.backend import Target

FUSIONS: tuple[Rule, ...] = (
    *linear.RULES,      # a bias is a part of its linear before anything else adds to it
    *norm.RULES,        # a sum that feeds a norm is claimed before anything else takes it
    *softmax.RULES,     # what an attention written as maths is made of
    *activation.RULES,  # gated forms
    *position.RULES,    # rope and the KV appends
    *norm_rope.RULES,   # grows out of what position has made
)
"""The rules that are offered every level of Operations, in the order in which they are tried."""


def groups(target: Target) -> tuple[Rule, ...]:
    """The group rules, which come after the fusions of a level: they take what is left over."""
    meeting = target.epilogue_matmuls if target.fuses_loops else 1
    return tuple(MergeLinears(op, meeting) for op in LINEARS)
