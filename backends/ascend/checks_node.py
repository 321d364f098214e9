"""One node against everything that ATB demands of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphdsl.errors import GraphError

from . import checks_attention as attention
from . import checks_collectives as collectives
from . import checks_ops as ops
from .atb import DataType, Node, Tensor
from .checks_call import Call, described
from .checks_sizes import Shape, Shapes, same_shape, text, view_problem
from .checks_table import called, check_fields
from .tables import IN_PLACE, MAY_BE_IN_PLACE, MOST_DIMS, NZ_WIDTH

Rule = Callable[[Call], Shapes]

RULES: Mapping[str, Rule] = {
    "Linear": ops.linear, "RmsNorm": ops.rms_norm, "LayerNorm": ops.layer_norm,
    "Rope": ops.rope, "Elewise": ops.elewise, "Activation": ops.activation,
    "Split": ops.split, "Concat": ops.concat, "Transpose": ops.transpose,
    "Softmax": ops.softmax, "Gather": ops.gather,
    "AllReduce": collectives.all_reduce, "LinearParallel": collectives.linear_parallel,
    "SelfAttention": attention.self_attention, "PagedAttention": attention.paged_attention,
    "ReshapeAndCache": attention.reshape_and_cache, "KvCache": attention.kv_cache,
}


def check_node(node: Node, soc: str) -> None:
    """Raises GraphError at the user's line for a node that ATB refuses, or worse, takes."""
    check_fields(node)
    for tensor in node.inputs + node.outputs:
        _check_shape(node, tensor, tensor.shape)
        _check_tiles(node, tensor)
    _check_views(node)
    call = called(node, soc)
    _check_in_place(call)
    if call.fields.get("outDataType", DataType("")) != DataType(""):
        raise call.error("outDataType is set, wanted none: it is for quantised operands")
    made = RULES[node.op](call)
    for index, (shape, tensor) in enumerate(zip(made, node.outputs, strict=True)):
        seen = node.seen(node.inputs.index(tensor)) if tensor in node.inputs else tensor.shape
        if not same_shape(shape, seen):
            raise call.error(f"output {index} ({call.row.outputs[index].name}) is "
                             f"{described(tensor)}, but ATB makes {text(shape)}")


def _check_shape(node: Node, tensor: Tensor, shape: Shape) -> None:
    if not 1 <= len(shape) <= MOST_DIMS:
        raise GraphError(f"ATB's {node.op}: {described(tensor, shape)} has {len(shape)} axes, "
                         f"wanted 1 to {MOST_DIMS}", node.loc)
    if any(isinstance(size, int) and size < 1 for size in shape):
        raise GraphError(f"ATB's {node.op}: {described(tensor, shape)}, wanted sizes of at least "
                         "1", node.loc)


def _check_tiles(node: Node, tensor: Tensor) -> None:
    """NZ lies in tiles of 16 rows and 16 columns. A weight may have its two sizes instead."""
    if tensor.format != "nz" or len(tensor.shape) < 4:
        return
    *_, rows, columns = tensor.shape
    whole = not isinstance(rows, int) or rows % NZ_WIDTH == 0
    if columns != NZ_WIDTH or not whole:
        raise GraphError(f"ATB's {node.op}: {described(tensor)}, wanted {NZ_WIDTH} as last size "
                         f"and a multiple of {NZ_WIDTH} before it", node.loc,
                         f"blocks of caches have a multiple of {NZ_WIDTH} slots")


def _check_views(node: Node) -> None:
    if len(node.views) != len(node.inputs):
        raise GraphError(f"ATB's {node.op}: {len(node.views)} views for {len(node.inputs)} inputs",
                         node.loc)
    for tensor, view in zip(node.inputs, node.views, strict=True):
        if view is None or view == tensor.shape:
            continue
        _check_shape(node, tensor, view)
        problem = view_problem(tensor.shape, view)
        if tensor.format == "nz":
            problem = "a tensor in NZ lies in tiles"
        if problem:
            raise GraphError(f"ATB's {node.op}: {described(tensor)} cannot be seen as "
                             f"{text(view)}: {problem}", node.loc,
                             "ATB itself only logs that, and reads what is not there")


def _check_in_place(call: Call) -> None:
    """Refuses outputs that are an input, but for operations that are meant to write there."""
    node, forced = call.node, IN_PLACE.get(call.node.op, {})
    for slot, tensor in zip(call.row.outputs, node.outputs, strict=True):
        if slot.name in forced:
            if call.tensor(forced[slot.name]) != tensor:
                raise call.error(f"output {slot.name} is {described(tensor)}, wanted "
                                 f"{described(call.tensor(forced[slot.name]))}, its input "
                                 f"{forced[slot.name]}: it writes in place")
        elif tensor in node.inputs and node.op not in MAY_BE_IN_PLACE:
            raise call.error(f"output {slot.name} is its input {described(tensor)}, wanted a "
                             "tensor of its own", "it does not compute in place")
    if len(set(node.outputs)) != len(node.outputs):
        raise call.error("two outputs are one tensor")
