"""What Hugging Face configs call the functions between the linears of a feed-forward network."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.op import Op
from graphdsl.ops import gelu, gelu_tanh, relu, silu

ACTIVATIONS = {"gelu": gelu, "gelu_python": gelu, "gelu_new": gelu_tanh, "gelu_fast": gelu_tanh,
               "gelu_pytorch_tanh": gelu_tanh, "relu": relu, "silu": silu, "swish": silu}


def activation(name: str) -> Op:
    """The activation of this name. Raises GraphError for one that is not supported."""
    if name not in ACTIVATIONS:
        raise GraphError(f"no activation {name!r}", hint=f"supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
