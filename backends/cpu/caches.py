"""KV caches in generated code."""

from __future__ import annotations

from graphdsl.expr import Poly
from graphdsl.ir import TensorType
from graphdsl.views import Ref

from .c_types import CTYPES
from .loops import address


def cache_text(kind: TensorType, ref: Ref, table: Ref | None, *, const: bool = True) -> str:
    """C++ text of the Cache that a value of this type, lying at `ref`, is; `table` is the block
    table of a paged one. A value without a layout, or a view of one, is a contiguous cache."""
    layout = kind.layout
    ctype = ("const " if const else "") + CTYPES[ref.dtype]
    strides = ", ".join(map(str, ref.strides[:3]))
    pages = ("nullptr, 0, 0" if table is None or layout is None or layout.policy != "paged"
             else f"{address(table)}, {table.strides[0]}, {layout.block}")
    shifts = "true" if layout and layout.policy == "shift" else "false"
    return (f"Cache<{ctype}>{{{address(ref)}, {{{strides}}}, {Poly.of(kind.shape[1])}, {pages}, "
            f"{shifts}}}")
