"""Recipes: params-only graphs of kernels as JSON, run in the reference when weights are bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Value
from graphdsl.lazy import torch
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
        op, attrs = _op(step), {k: _tuples(v) for k, v in step["attrs"].items() if k != "given"}
        tensors = [tensor(x) for x in step["inputs"]]
        if op.parameters.variadic:
            result = op.function(*tensors, **attrs)
        else:
            names = op.present(len(tensors), step["attrs"])
            result = op.function(**dict(zip(names, tensors, strict=True)), **attrs)
        results.append(result if isinstance(result, tuple) else (result,))
    return tensor(recipe["result"])


def _op(step: Json) -> Op:
    module, _, name = step["op"].partition(":")
    op: Op = getattr(import_module(module), name)
    return op


def source_names(recipe: Graph | None, name: str) -> tuple[str, ...]:
    """The weights of the user's that a param is made of."""
    return tuple(v.name for v in recipe.params) if recipe else (name,)


def run_quantised(recipe: Json, weights: Mapping[str, Quantised]) -> Quantised:
    """The folded param that a recipe which moves whole rows makes of quantised weights, without
    requantising: rows are joined in the least format that holds each of them. Raises GraphError
    where a weight is transposed."""
    turned = sorted(transposed_inputs(recipe) & weights.keys())
    if turned:
        raise GraphError(f"weight {turned[0]} is transposed before it is read, so it cannot be "
                         "taken as it is quantised", hint="weight.dequantised()")
    starts = accumulate((w.shape[0] for w in weights.values()), initial=0)
    numbers = {name: torch.arange(start, start + weights[name].shape[0])[:, None]
               for name, start in zip(weights, starts, strict=False)}
    order = run_recipe({**recipe, "steps": [*map(_of_one_column, recipe["steps"])]}, numbers)
    return concat_rows([*weights.values()]).rows(order[:, 0])


def _of_one_column(step: Json) -> Json:
    """A step that moves rows, for rows of one number."""
    shape = step["attrs"].get("shape")
    return step if shape is None else {**step, "attrs": {"shape": [*shape[:-1], 1]}}


def transposed_inputs(recipe: Json) -> set[str]:
    """The params that a recipe transposes first."""
    return {step["inputs"][0] for step in recipe["steps"]
            if step["op"].endswith(":transpose") and isinstance(step["inputs"][0], str)}


@dataclass(frozen=True)
class Part:
    """Of a weight, `size` elements along `axis` from `start` on."""

    name: str
    axis: int
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.name}[axis {self.axis}: {self.start} to {self.start + self.size}]"


def parts_of(recipe: Json) -> dict[str, Part] | None:
    """The slices of weights that a recipe reads, by their text; None where it reads a weight in
    another way too."""
    slices = _slices(recipe)
    reads = sum(isinstance(x, str) for step in recipe["steps"] for x in step["inputs"])
    whole = isinstance(recipe["result"], str) or reads != len(slices)
    return None if whole or not slices else {str(part): part for part in slices.values()}


def of_parts(recipe: Json) -> Json:
    """A recipe of slices, for the slices by their text in place of the weights."""
    steps = list(recipe["steps"])
    for (reader, sliced), part in _slices(recipe).items():
        steps[reader] = {**steps[reader], "inputs": [str(part)]}
        steps[sliced] = {**steps[sliced], "attrs": {**steps[sliced]["attrs"], "start": 0}}
    return {**recipe, "steps": steps}


def _slices(recipe: Json) -> dict[tuple[int, int], Part]:
    """The slices of weights: the step that reads the weight, which may transpose it for that one
    slice, and the step of the slice."""
    steps = recipe["steps"]
    readers = Counter(x[0] for step in steps for x in step["inputs"] if not isinstance(x, str))
    found = {}
    for index, step in enumerate(steps):
        if not step["op"].endswith(":slice") or step["attrs"]["axis"] < 0:
            continue
        given, axis, reader = step["inputs"][0], step["attrs"]["axis"], index
        if not isinstance(given, str) and readers[given[0]] == 1:
            reader = given[0]
            is_turned = steps[reader]["op"].endswith(":transpose")
            axis = steps[reader]["attrs"]["order"][axis] if is_turned else axis
            given = steps[reader]["inputs"][0] if is_turned else given
        if isinstance(given, str):
            part = Part(given, axis, step["attrs"]["start"], step["attrs"]["size"])
            found[reader, index] = part
    return found


def recipe_inputs(recipe: Json) -> set[str]:
    """The params that a recipe reads."""
    read = {x for step in recipe["steps"] for x in step["inputs"] if isinstance(x, str)}
    return read | ({recipe["result"]} if isinstance(recipe["result"], str) else set())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
