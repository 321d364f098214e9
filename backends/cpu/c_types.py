"""What values are in C++."""

from __future__ import annotations

from graphdsl.ir import TensorType

CTYPES = {"f32": "float", "bf16": "bf16", "i32": "int32_t", "bool": "uint8_t",
          "int8": "int8_t"}

def ctype_of(kind: TensorType) -> str:
    """The C type of what a value of this type is in memory; a quantised weight is bytes of its
    format."""
    if kind.quant is None:
        return CTYPES[kind.stored]
    quant = kind.quant
    flags = ["true" if flag else "false" for flag in (quant.offset, quant.act == "int8")]
    scale = {"f16": "f16", "f32": "float"}[quant.scale]
    return f"Quant<{quant.bits}, {quant.group}, {flags[0]}, {scale}, {flags[1]}>"
