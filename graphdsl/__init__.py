"""graphdsl: layers written as plain maths, built into fused native operators.

Names are loaded at their first use, so that `import graphdsl` costs nothing and torch is imported
only by what computes with tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphdsl import ops, reference
    from graphdsl.api import build, load, load_model, register_torch_class
    from graphdsl.errors import GraphError, ToolError
    from graphdsl.ir import Dim, Graph, TensorType, Value
    from graphdsl.layer import KVCache, Layer, Model, Param, trace
    from graphdsl.op import kernel, operation
    from graphdsl.passes.static import static
    from graphdsl.runtime.door import torch_op
    from graphdsl.runtime.operator import Operator

__version__ = "0.1.0"

__all__ = [
    "Dim", "Graph", "GraphError", "KVCache", "Layer", "Model", "Operator", "Param", "TensorType",
    "ToolError", "Value", "__version__", "build", "kernel", "load", "load_model", "operation",
    "ops", "reference", "register_torch_class", "static", "torch_op", "trace",
]

_HOMES = {
    "api": ("build", "load", "load_model", "register_torch_class"),
    "errors": ("GraphError", "ToolError"),
    "ir": ("Dim", "Graph", "TensorType", "Value"),
    "layer": ("KVCache", "Layer", "Model", "Param", "trace"),
    "op": ("kernel", "operation"),
    "passes.static": ("static",),
    "runtime.door": ("torch_op",),
    "runtime.operator": ("Operator",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("ops", "reference"):
        return importlib.import_module(f"graphdsl.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'graphdsl' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"graphdsl.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
