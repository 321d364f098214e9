"""Run a graph in torch, node by node: what every backend has to agree with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import FLOATS, Affine, Dim, Graph, Node, Value, constant, size_value, terms
from graphdsl.lazy import torch, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = {"f64": 1e-9, "f32": 2e-5, "f16": 5e-3, "bf16": 2e-2}
"""Largest max|ours - ref| / max|ref| that counts as agreement, by dtype of the compute."""

STORAGE_TOLERANCE = {"int8": 2e-2}
"""The same where KV caches are stored so: int8 puts a number up to 1 / 254 of its row's largest
from where it was, and what is computed from it as far."""

ACT_TOLERANCE = {"int8": 2.5e-2}
"""The same for one Layer whose linears with quantised weights round rows of x so: a number is up to
1 / 254 of the largest of its group from where it was. What several Layers lose adds up as
independent errors do, with the square root of their number."""


def run(graph: Graph, inputs: Mapping[str, Tensor] | Sequence[Tensor],
        params: Mapping[str, Tensor], state: Mapping[str, Tensor] | None = None,
        *, exact: bool = False) -> list[Tensor]:
    """The outputs of `graph` (results, then new state).

    Tensors are given by name (inputs by order too); state has the logical shape
    [batch, slots, kv_heads, head_dim] and is not changed. With `exact`, everything that the graph
    says is floating is computed in f64. Raises GraphError when a tensor is missing or its shape
    does not fit.
    """
    env, dims = bound(graph, inputs, params, state or {}, exact=exact)
    return _run(graph, env, dims, exact)


def bound(graph: Graph, inputs: Mapping[str, Tensor] | Sequence[Tensor],
          params: Mapping[str, Tensor], state: Mapping[str, Tensor], *, exact: bool = False,
          ) -> tuple[dict[Value, Tensor], dict[str, int]]:
    """What a run begins with: the tensor of every leaf, and the sizes that they bind. Raises
    GraphError as `run` does."""
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(graph.inputs):
            raise GraphError(f"{graph.name}: {len(inputs)} inputs given, {len(graph.inputs)} "
                             f"wanted: {', '.join(v.name for v in graph.inputs)}")
        inputs = dict(zip((v.name for v in graph.inputs), inputs, strict=True))
    given = {**inputs, **state, **params}
    env: dict[Value, Tensor] = {}
    dims: dict[str, int] = {}
    for leaf in graph.leaves:
        if leaf.name not in given:
            raise GraphError(f"{graph.name}: {leaf.kind or 'input'} {leaf.name} is missing")
        tensor = given[leaf.name]
        env[leaf] = tensor.double() if exact and leaf.dtype in FLOATS else tensor
        bind_dims(leaf, tuple(tensor.shape), dims)
    for leaf in graph.inputs:
        _bind_step_dims(graph, leaf, env[leaf], dims)
    return env, dims


def bind_dims(leaf: Value, shape: tuple[int, ...], dims: dict[str, int]) -> None:
    """Reads the dims of a leaf's type off a shape. Raises GraphError on a contradiction."""
    if len(shape) != len(leaf.shape):
        raise GraphError(f"{leaf.name} has {len(shape)} dims {list(shape)}, wanted {leaf.type}")
    for size, found in zip(leaf.shape, shape, strict=True):
        if isinstance(size, Dim) and not size.source:
            dims.setdefault(size.name, found)
        if all(d.name in dims for d in terms(size)) and size_value(size, dims) != found:
            raise GraphError(f"{leaf.name} is {list(shape)}: {size} is {found}, but it has to be "
                             f"{size_value(size, dims)}", hint=f"wanted {leaf.type}")


def _bind_step_dims(graph: Graph, leaf: Value, tensor: Tensor, dims: dict[str, int]) -> None:
    for value in (v for n in graph.nodes for v in n.outputs):
        for dim in (d for s in value.shape for d in terms(s)):
            if dim.source == leaf.name and dim.name not in dims:
                dims[dim.name] = int(tensor.reshape(-1)[0])


def _run(graph: Graph, env: dict[Value, Tensor], dims: dict[str, int],
         exact: bool) -> list[Tensor]:
    for node in graph.nodes:
        outputs = run_node(node, [env[v] for v in node.inputs], dims, exact)
        env.update(zip(node.outputs, outputs, strict=True))
    return [env[v] for v in graph.outputs]


def run_node(node: Node, tensors: list[Tensor], dims: dict[str, int],
             exact: bool = False) -> tuple[Tensor, ...]:
    """The outputs of one node."""
    if node.name == "repeat":
        return _run_repeat(node, tensors, dims, exact)
    if node.body is not None:
        env = dict(zip(node.body.leaves, tensors, strict=True))
        return tuple(_run(node.body, env, dims, exact))
    attrs = {k: _number(v, dims) for k, v in node.attrs if k != "given"}
    if exact and attrs.get("dtype") in FLOATS:
        attrs["dtype"] = "f64"
    if node.op.parameters.variadic:
        result = node.op.function(*tensors, **attrs)
    else:
        names = node.op.present(len(tensors), node.attr)
        result = node.op.function(**dict(zip(names, tensors, strict=True)), **attrs)
    return result if isinstance(result, tuple) else (result,)


def _run_repeat(node: Node, tensors: list[Tensor], dims: dict[str, int],
                exact: bool) -> tuple[Tensor, ...]:
    """`turns` runs of the body; see graphdsl.passes.repeat for the order of the operands."""
    from graphdsl.passes.repeat import operands_of

    assert node.body is not None
    split = operands_of(node, tensors)
    carried, new_state = list(split.carried), []
    for state, params in zip(split.state, split.params, strict=True):
        leaves = [*carried, *split.invariant, *state, *params]
        env = dict(zip(node.body.leaves, leaves, strict=True))
        outputs = _run(node.body, env, dims, exact)
        carried = outputs[: len(carried)]
        new_state += outputs[len(carried):]
    return (*carried, *new_state)


def _number(value: Any, dims: Mapping[str, int]) -> Any:
    if isinstance(value, Dim | Affine):
        return size_value(value, dims)
    if isinstance(value, tuple):
        return tuple(_number(v, dims) for v in value)
    return value


def error_of(ours: Tensor, reference: Tensor) -> float:
    """max|ours - ref| / max|ref| over what is finite, the measure of every comparison; inf where
    nan, inf and -inf are not in the same places in both."""
    a, b = ours.double(), reference.double()
    finite = torch.isfinite(b)
    if not torch.allclose(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    a, b = a[finite], b[finite]
    if a.numel() == 0:
        return 0.0
    if not bool(torch.isfinite(a).all()):
        return float("inf")
    scale = float(b.abs().max())
    difference = float((a - b).abs().max())
    return difference / scale if scale > 0 else difference


__all__ = ["ACT_TOLERANCE", "STORAGE_TOLERANCE", "TOLERANCE", "bind_dims", "constant", "error_of",
           "run", "run_node", "torch_dtype"]
