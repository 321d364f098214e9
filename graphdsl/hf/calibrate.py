"""A model run layer by layer on a text, to see what its linears multiply.

Every layer runs twice: as it is, to see its inputs, and with rounded weights, to make the inputs
of the next, which so learns of the errors before it. Only one layer's weights are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from graphdsl.ir import Graph, Node, Value, size_value
from graphdsl.lazy import torch, torch_dtype
from graphdsl.op import Op
from graphdsl.ops.linear import linear, matmul_nt
from graphdsl.passes.roll import is_layer
from graphdsl.reference import bind_dims, run_node

if TYPE_CHECKING:
    from torch import Tensor

Env = dict[Value, "Tensor"]
Rounded = Callable[[str, "Tensor", "Tensor"], "Tensor"]
"""(name, weight [n, k], Gram matrix of its inputs [k, k]) -> the weight to go on with."""

PRODUCTS: tuple[Op, ...] = (linear, matmul_nt)


def calibrate(graph: Graph, read: Callable[[str], Tensor], texts: Sequence[Tensor],
              rounded: Rounded) -> None:
    """Calls `rounded` for every weight that a Layer's linears multiply rows with.

    `graph` is that of a Model traced in f32, that takes ids, positions and rows; `texts` are ids
    [1, tokens], which all have one length; `read` gives the param of a name when it is needed.
    """
    layers = [node for node in graph.nodes if is_layer(node)]
    envs = [_inputs(graph, ids) for ids in texts]
    dims = _dims(graph, envs[0])
    last = {v: node for node in graph.nodes for v in node.inputs}
    for node in _until(graph, layers[-1] if layers else None):
        own = {v: read(v.name).float() for v in node.inputs if v.is_param}
        own |= {v: _empty(v, dims) for v in node.inputs if v.kind == "state"}
        if is_layer(node):
            for value, gram in _grams(node, envs, own, dims).items():
                own[value] = rounded(value.name, own[value], gram)
        for env in envs:
            outputs = run_node(node, [{**env, **own}[v] for v in node.inputs], dims)
            env.update(zip(node.outputs, outputs, strict=True))
            for value in [v for v in env if last.get(v) in (None, node)]:
                del env[value]


def _until(graph: Graph, end: Node | None) -> Iterator[Node]:
    for node in graph.nodes:
        if end is None:
            return
        yield node
        if node is end:
            return


def _inputs(graph: Graph, ids: Tensor) -> Env:
    tokens = torch.arange(ids.shape[1], dtype=torch.int32)[None]
    known = {"ids": ids.int(), "positions": tokens, "rows": tokens[:, -1:]}
    return {v: known[v.name] for v in graph.inputs}


def _dims(graph: Graph, env: Env) -> dict[str, int]:
    dims: dict[str, int] = {}
    for leaf in graph.inputs:
        bind_dims(leaf, tuple(env[leaf].shape), dims)
    return {**dims, "slots": dims["tokens"]}


def _empty(state: Value, dims: dict[str, int]) -> Tensor:
    return torch.zeros([size_value(size, dims) for size in state.shape],
                       dtype=torch_dtype(state.dtype))


def _grams(node: Node, envs: Sequence[Env], own: Env, dims: dict[str, int]) -> dict[Value, Tensor]:
    """For every param [n, k] that linears of a Layer read, the sum of x^T x of their rows, f32;
    one matrix for weights that read the same rows."""
    grams: dict[Value, Tensor] = {}
    for env in envs:
        made: dict[int, Tensor] = {}

        def see(param: Value, x: Tensor, made: dict[int, Tensor] = made) -> None:
            rows = x.reshape(-1, x.shape[-1]).float()
            if id(x) not in made:
                made[id(x)] = rows.T @ rows
            before = grams.get(param)
            grams[param] = made[id(x)] if before is None else before + made[id(x)]

        _run_seen(node, [{**env, **own}[v] for v in node.inputs], node.inputs, dims, see)
    return grams


def _run_seen(node: Node, tensors: Sequence[Tensor], operands: Sequence[Value],
              dims: dict[str, int], see: Callable[[Value, Tensor], None]) -> tuple[Tensor, ...]:
    """The outputs of a Layer; `see` is told what every linear multiplies with which of `operands`,
    those of Layers inside of it too."""
    assert node.body is not None
    env: Env = dict(zip(node.body.leaves, tensors, strict=True))
    outer = dict(zip(node.body.leaves, operands, strict=True))
    for inner in node.body.nodes:
        given = [env[v] for v in inner.inputs]
        if inner.op in PRODUCTS and inner.inputs[1] in outer and inner.inputs[1].is_param:
            see(outer[inner.inputs[1]], given[0])
        if is_layer(inner):
            made = _run_seen(inner, given, [outer.get(v, v) for v in inner.inputs], dims, see)
        else:
            made = run_node(inner, given, dims)
        env.update(zip(inner.outputs, made, strict=True))
    return tuple(env[v] for v in node.body.outputs)


__all__ = ["calibrate"]
