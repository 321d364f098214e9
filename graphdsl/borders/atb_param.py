"""The numbers that ATB's Operation for a layer is given as JSON, against those that a layer was
built with: nothing is set by them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node
from graphdsl.ops.attention import attention
from graphdsl.ops.position import rope

NEAR = 1e-6
"""How far, relatively, a number that came by way of f32 is from the one that was built."""
ALIASES = {"headNum": "heads", "kvHeadNum": "kv_heads", "dk": "head_dim", "headDim": "head_dim",
           "qkScale": "scale", "rmsNormEps": "eps", "layerNormEps": "eps", "epsilon": "eps",
           "rotaryCoeff": "rotary", "rank": "rank", "rankSize": "ranks"}
"""What a key speaks of."""


def check_param(owner: str, graph: Graph, text: str) -> None:
    """Raises GraphError where `text` is no JSON object, has a key that says nothing of a layer, or
    a number that `graph` was not built with."""
    built = _built(graph)
    for key, value in _read(owner, text).items():
        if key not in ALIASES:
            raise GraphError(f"{owner}: set_param: {key} is nothing that the layer can be compared "
                             "in", hint=f"leave it out; known: {', '.join(ALIASES)}")
        numbers = built[ALIASES[key]]
        if not numbers:
            raise GraphError(f"{owner}: set_param: the layer has nothing that {key} speaks of",
                             hint="leave it out")
        if not any(_is_near(value, number) for number in numbers):
            raise GraphError(f"{owner}: set_param: {key} is {json.dumps(value)}, but the layer was "
                             f"built with {' and '.join(f'{n:g}' for n in sorted(numbers))}",
                             hint="numbers are set in the config that the layer is built with")


def _read(owner: str, text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise GraphError(f"{owner}: set_param: {error}", hint="wanted a JSON object") from None
    if not isinstance(found, dict):
        raise GraphError(f"{owner}: set_param: {text[:40]}", hint="wanted a JSON object")
    return found


def _is_near(value: Any, number: float) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isclose(value, number, rel_tol=NEAR)


def _built(graph: Graph) -> dict[str, set[float]]:
    """What the nodes of a layer have."""
    found: dict[str, set[float]] = {name: set() for name in ALIASES.values()}
    found["rank"], found["ranks"] = {0}, {1}
    for node in _nodes(graph):
        numbers = dict(_of_attention(node) if node.op is attention else _of_rope(node)
                       if node.op is rope else {"eps": node.attr.get("eps")})
        for name, number in numbers.items():
            if isinstance(number, int | float):
                found[name].add(number)
    return found


def _of_attention(node: Node) -> Mapping[str, Any]:
    heads, dim = node.inputs[0].shape[2:]
    scale = node.attr["scale"]
    default = dim ** -0.5 if isinstance(dim, int) else None
    return {"heads": heads, "kv_heads": node.inputs[1].shape[2], "head_dim": dim,
            "scale": default if scale is None else scale}


def _of_rope(node: Node) -> Mapping[str, Any]:
    """ATB counts 2 for halves, and for pairs the channels that are turned."""
    half = node.inputs[1].shape[-1]
    pairs = 2 * half if isinstance(half, int) else None
    return {"rotary": pairs if node.attr["interleaved"] else 2}


def _nodes(graph: Graph) -> Iterator[Node]:
    """Those of a graph and of the bodies in it."""
    for node in graph.nodes:
        yield node
        if node.body is not None:
            yield from _nodes(node.body)


__all__ = ["check_param"]
