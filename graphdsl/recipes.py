"""Recipes: params-only graphs of kernels as JSON, run in the reference when weights are bound."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import Attrs, Graph, Value
from graphdsl.op import Op
from graphdsl.quant import Quantised, concat_rows

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]


def recipe_json(graph: Graph) -> Json:
    """The steps of a params-only graph with one output. Operands are params by name, or
    [step, output]."""
    number = {node: i for i, node in enumerate(graph.nodes)}

    def operand(value: Value) -> Any:
        return [number[value.node], value.index] if value.node else value.name

    steps = [{"op": f"{n.op.function.__module__}:{n.op.name}", "inputs": [*map(operand, n.inputs)],
              "attrs": dict(n.attrs)} for n in graph.nodes]
    return {"steps": steps, "result": operand(graph.outputs[0])}


def run_recipe(recipe: Json, params: Mapping[str, Tensor]) -> Tensor:
    """The folded param that a recipe makes of the params of a state dict."""
    results: list[tuple[Tensor, ...]] = []

    def tensor(operand: Any) -> Tensor:
        if isinstance(operand, str):
            return params[operand]
        step, output = operand
        found: Tensor = results[step][output]
        return found

    for step in recipe["steps"]:
        module, _, name = step["op"].partition(":")
        op: Op = getattr(import_module(module), name)
        attrs: Attrs = tuple((k, _tuples(v)) for k, v in step["attrs"].items() if k != "given")
        tensors = [tensor(x) for x in step["inputs"]]
        if op.parameters.variadic:
            result = op.function(*tensors, **dict(attrs))
        else:
            names = op.present(len(tensors), step["attrs"])
            result = op.function(**dict(zip(names, tensors, strict=True)), **dict(attrs))
        results.append(result if isinstance(result, tuple) else (result,))
    return tensor(recipe["result"])


def source_names(recipe: Graph | None, name: str) -> tuple[str, ...]:
    """The weights of the user's that a param is made of."""
    return tuple(v.name for v in recipe.params) if recipe else (name,)


def run_quantised(recipe: Json, weights: Mapping[str, Quantised]) -> Quantised:
    """The folded param that a recipe which leaves rows whole makes of quantised weights, without
    requantising: rows are joined in the least format that holds each of them. Raises GraphError
    where a weight is transposed."""
    results: list[tuple[Quantised, ...]] = []

    def weight(operand: Any) -> Quantised:
        return weights[operand] if isinstance(operand, str) else results[operand[0]][operand[1]]

    for step in recipe["steps"]:
        name, attrs = step["op"].partition(":")[2], step["attrs"]
        parts = [weight(x) for x in step["inputs"]]
        if name == "concat":
            results.append((concat_rows(parts),))
        elif name in ("slice", "split"):
            sizes = attrs["sizes"] if name == "split" else [attrs["size"]]
            starts = accumulate(sizes, initial=attrs.get("start", 0))
            results.append(tuple(parts[0].rows(slice(start, start + size))
                                 for start, size in zip(starts, sizes, strict=False)))
        else:
            raise GraphError(f"weight {step['inputs'][0]} is transposed before it is read, so it "
                             "cannot be taken as it is quantised", hint="weight.dequantised()")
    return weight(recipe["result"])


def transposed_inputs(recipe: Json) -> set[str]:
    """The params that a recipe transposes first."""
    return {step["inputs"][0] for step in recipe["steps"]
            if step["op"].endswith(":transpose") and isinstance(step["inputs"][0], str)}


def recipe_inputs(recipe: Json) -> set[str]:
    """The params that a recipe reads."""
    read = {x for step in recipe["steps"] for x in step["inputs"] if isinstance(x, str)}
    return read | ({recipe["result"]} if isinstance(recipe["result"], str) else set())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
