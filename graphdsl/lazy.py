"""torch, imported on first use: tracing, passes and code generation never need it.

The reference of every kernel is torch code, but `graphdsl build` runs none of it, and importing
torch costs more than a whole build that finds everything in the cache.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class LazyModule:
    """Imports the module of this name when an attribute is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "f64": "float64",
          "i32": "int32", "bool": "bool", "int8": "int8"}


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's name for a dtype of the IR."""
    found: torch.dtype = getattr(torch, _NAMES[dtype])
    return found


__all__ = ["LazyModule", "torch", "torch_dtype"]
