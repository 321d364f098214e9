"""Recipes: params-only graphs of kernels as JSON, run in the reference when weights are bound."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphdsl.ir import Attrs, Graph, Value
from graphdsl.op import Op

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


def recipe_inputs(recipe: Json) -> set[str]:
    """The params that a recipe reads."""
    read = {x for step in recipe["steps"] for x in step["inputs"] if isinstance(x, str)}
    return read | ({recipe["result"]} if isinstance(recipe["result"], str) else set())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
