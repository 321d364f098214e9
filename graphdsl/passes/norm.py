"""Rules for norms."""

from __future__ import annotations

from typing import Any

from graphdsl.ir import Value
from graphdsl.ops.norm import add_rms_norm, rms_norm
from graphdsl.passes.rules import FusionRule, Rule


class AddRMSNorm(FusionRule):
    """x + r feeding rms_norm becomes one operation; the sum stays available to its other users."""

    shapes = "x[*b, d], r[*b, d], w[d]"
    attributes = {"eps": (1e-5, 1e-3)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        total = x + r
        return rms_norm(total, w, eps=eps), total

    @staticmethod
    def after(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        return add_rms_norm(x, r, w, eps=eps)


RULES: tuple[Rule, ...] = (AddRMSNorm(),)
