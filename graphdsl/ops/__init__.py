"""The ops of the DSL: `from graphdsl.ops import attention, linear, rms_norm, rope, silu`."""

from graphdsl.ops.activation import (
    geglu,
    geglu_tanh,
    gelu,
    gelu_tanh,
    relu,
    sigmoid,
    silu,
    swiglu,
)
from graphdsl.ops.attention import attention
from graphdsl.ops.collectives import all_gather, all_reduce
from graphdsl.ops.kv import kv_append, norm_rope_append, relayout, rope_append
from graphdsl.ops.linear import embedding, expert_linear, linear, matmul, matmul_nt
from graphdsl.ops.math import (
    abs,
    add,
    cast,
    cos,
    div,
    equal,
    erf,
    exp,
    floor,
    greater,
    greater_equal,
    less,
    less_equal,
    log,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    mean,
    minimum,
    mul,
    neg,
    pow,
    reduce_max,
    reduce_min,
    reduce_sum,
    rsqrt,
    sin,
    sqrt,
    sub,
    tanh,
    where,
)
from graphdsl.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm, softmax
from graphdsl.ops.position import rope, rope_angles, rope_frequencies
from graphdsl.ops.search import argmax, topk
from graphdsl.ops.shape import (
    arange,
    concat,
    expand,
    gather,
    merge_heads,
    repeat_interleave,
    reshape,
    slice,
    split,
    split_heads,
    take_rows,
    transpose,
)

__all__ = [
    "abs", "add", "add_layer_norm", "add_rms_norm", "all_gather", "all_reduce", "arange",
    "argmax", "attention", "cast", "concat", "cos", "div", "embedding", "equal", "erf", "exp",
    "expand", "expert_linear", "floor", "gather", "geglu", "geglu_tanh", "gelu", "gelu_tanh",
    "greater", "greater_equal", "kv_append", "layer_norm", "less", "less_equal", "linear",
    "log", "logical_and", "logical_not", "logical_or", "matmul", "matmul_nt", "maximum", "mean",
    "merge_heads", "minimum", "mul", "neg", "norm_rope_append", "pow", "reduce_max",
    "reduce_min", "reduce_sum", "relayout", "relu", "repeat_interleave", "reshape", "rms_norm",
    "rope", "rope_angles", "rope_append", "rope_frequencies", "rsqrt", "sigmoid", "silu", "sin",
    "slice", "softmax", "split", "split_heads", "sqrt", "sub", "swiglu", "take_rows", "tanh",
    "topk", "transpose", "where",
]
