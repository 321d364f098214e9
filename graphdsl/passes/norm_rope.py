"""The rule for norms of q and k."""

from __future__ import annotations

from typing import Any

from graphdsl.ir import Node, Value
from graphdsl.ops.kv import norm_rope_append, rope_append
from graphdsl.ops.norm import rms_norm
from graphdsl.passes.match import NoMatch
from graphdsl.passes.overlay import Overlay
from graphdsl.passes.rules import Candidate, FusionRule, Rule


class NormRopeAppend(FusionRule):
    """rms_norm of every head of q and k, then rope and the appends, becomes one operation."""

    shapes = ("q[b, t, 4, 8], k[b, t, 2, 8], v[b, t, 2, e], cos[b, t, 3]:f32, sin[b, t, 3]:f32,"
              " positions[b, t]:i32, k_cache[b, 9, 2, 8], v_cache[b, 9, 2, e], wq[8], wk[8]")
    attributes = {"eps": (1e-5, 1e-3), "interleaved": (False, True)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
               k_cache: Value, v_cache: Value, wq: Value, wk: Value, *, eps: float,
               interleaved: bool) -> Any:
        return rope_append(rms_norm(q, wq, eps=eps), rms_norm(k, wk, eps=eps), v, cos, sin,
                           positions, k_cache, v_cache, interleaved=interleaved)

    @staticmethod
    def after(*operands: Value, **attrs: Any) -> Any:
        return norm_rope_append(*operands, **attrs)

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        """Heads that are not normed at all are no near miss."""
        if not any(v.node and v.node.op is rms_norm for v in overlay.inputs(node)[:2]):
            raise NoMatch("neither q nor k is normed", node.outputs[0])
        return super().find(overlay, node)


RULES: tuple[Rule, ...] = (NormRopeAppend(),)
