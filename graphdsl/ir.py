"""The IR: sizes, types, values, nodes and graphs, all frozen.

A graph is reached from its outputs; nothing is ever edited. The three functions that passes are
built from (rebuild, inline, outline) are in `graphdsl.passes.rewrite`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from graphdsl.errors import Loc
from graphdsl.layout import ORDERS, POLICIES, STORAGES, Layout
from graphdsl.quant import Quant
from graphdsl.sizes import (
    BUILT,
    DTYPES,
    FLOATS,
    Affine,
    Dim,
    Size,
    add_sizes,
    affine,
    constant,
    scaled,
    size_value,
    terms,
    upper_bound,
)

if TYPE_CHECKING:
    from graphdsl.op import Op

@dataclass(frozen=True)
class TensorType:
    """The shape and dtype of a value, for a KV state its layout, and for a quantised param its
    format."""

    shape: tuple[Size, ...]
    dtype: str
    layout: Layout | None = None
    quant: Quant | None = None

    def __str__(self) -> str:
        stored = "".join(f"@{how}" for how in (self.layout, self.quant) if how)
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]{stored}"

    @property
    def plain(self) -> TensorType:
        """The same without a format: what a value computes with."""
        return replace(self, quant=None) if self.quant else self

    @property
    def stored(self) -> str:
        """The dtype in memory."""
        return "int8" if self.layout and self.layout.storage == "int8" else self.dtype


T = TypeVar("T")


class once(Generic[T]):
    """An attribute that is computed when it is first read. functools.cached_property takes a lock
    for each, and passes make a hundred thousand of them."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make = make
        self.name = make.__name__

    def __get__(self, holder: Any, owner: Any = None) -> T:
        made: T = self.make(holder)
        holder.__dict__[self.name] = made
        return made


def _rows(value: Value) -> list[Value]:
    found: list[Value] = importlib.import_module("graphdsl.ops.shape").rows(value)
    return found


def _truth(value: Value) -> bool:
    found: bool = importlib.import_module("graphdsl.op").no_truth(value)
    return found


@cache
def _op(module: str, name: str) -> Callable[..., Value]:
    """The op behind an operator. Ops are made of values, so they are found at the first use."""
    op: Callable[..., Value] = getattr(importlib.import_module(f"graphdsl.ops.{module}"), name)
    return op


Scalar = int | float


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Value:
    """One tensor: an output of a node, or a leaf of a graph (input, param or state)."""

    type: TensorType
    node: Node | None = None
    index: int = 0
    name: str = ""
    kind: str = ""

    def __init__(self, type: TensorType, node: Node | None = None, index: int = 0,
                 name: str = "", kind: str = "") -> None:
        # What a frozen dataclass does, in half the time: passes make values by the thousand.
        known = self.__dict__
        known["type"], known["node"], known["index"] = type, node, index
        known["name"], known["kind"] = name, kind

    def __repr__(self) -> str:
        """Short: what a value is made of is as large as its graph."""
        made_by = f"{self.node.name}#{self.index}" if self.node else self.kind or "input"
        return f"<{self.name or made_by}: {self.type}>"

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def is_param(self) -> bool:
        return self.kind == "param"

    @property
    def loc(self) -> Loc | None:
        return self.node.loc if self.node else None

    def __add__(self, other: Value | Scalar) -> Value:
        return _op("math", "add")(self, other)

    def __radd__(self, other: Scalar) -> Value:
        return _op("math", "add")(other, self)

    def __sub__(self, other: Value | Scalar) -> Value:
        return _op("math", "sub")(self, other)

    def __rsub__(self, other: Scalar) -> Value:
        return _op("math", "sub")(other, self)

    def __mul__(self, other: Value | Scalar) -> Value:
        return _op("math", "mul")(self, other)

    def __rmul__(self, other: Scalar) -> Value:
        return _op("math", "mul")(other, self)

    def __truediv__(self, other: Value | Scalar) -> Value:
        return _op("math", "div")(self, other)

    def __rtruediv__(self, other: Scalar) -> Value:
        return _op("math", "div")(other, self)

    def __pow__(self, other: Value | Scalar) -> Value:
        return _op("math", "pow")(self, other)

    def __rpow__(self, other: Scalar) -> Value:
        return _op("math", "pow")(other, self)

    def __neg__(self) -> Value:
        return _op("math", "neg")(self)

    def __lt__(self, other: Value | Scalar) -> Value:
        return _op("math", "less")(self, other)

    def __le__(self, other: Value | Scalar) -> Value:
        return _op("math", "less_equal")(self, other)

    def __gt__(self, other: Value | Scalar) -> Value:
        return _op("math", "greater")(self, other)

    def __ge__(self, other: Value | Scalar) -> Value:
        return _op("math", "greater_equal")(self, other)

    def __matmul__(self, other: Value) -> Value:
        return _op("linear", "product")(self, other)

    def __getitem__(self, index: Any) -> Value:
        return _op("shape", "index")(self, index)

    def __iter__(self) -> Iterator[Value]:
        return iter(_rows(self))

    def __bool__(self) -> bool:
        return _truth(self)


Attrs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One application of an op. `body` is what an Operation, Layer, loop or repeat consists of;
    `loc` is the user's line, `scope` the path of Layers and Operations around it, and `origin`
    the rules that made it."""

    op: Op
    inputs: tuple[Value, ...]
    attrs: Attrs
    out_types: tuple[TensorType, ...]
    body: Graph | None = None
    loc: Loc | None = None
    scope: str = ""
    origin: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.name} at {self.loc}>"

    @once
    def outputs(self) -> tuple[Value, ...]:
        return tuple([Value(t, self, i) for i, t in enumerate(self.out_types)])

    @once
    def attr(self) -> dict[str, Any]:
        """The attributes by name."""
        return dict(self.attrs)

    @property
    def name(self) -> str:
        return self.op.name


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """Inputs, state and params to outputs. The last `len(state)` outputs are the new state, in
    the order of `state`; `results` are the ones before them."""

    name: str
    inputs: tuple[Value, ...]
    params: tuple[Value, ...]
    state: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def __repr__(self) -> str:
        return f"<graph {self.name} of {len(self.nodes)} nodes>"

    @property
    def leaves(self) -> tuple[Value, ...]:
        return self.inputs + self.state + self.params

    @property
    def results(self) -> tuple[Value, ...]:
        return self.outputs[: len(self.outputs) - len(self.state)]

    @property
    def new_state(self) -> tuple[Value, ...]:
        return self.outputs[len(self.outputs) - len(self.state):]

    @once
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that the outputs need, every one after those that it reads."""
        seen: set[Node] = set()
        order: list[Node] = []
        stack = [(v.node, False) for v in reversed(self.outputs) if v.node]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack += [(v.node, False) for v in reversed(node.inputs)
                          if v.node and v.node not in seen]
        return tuple(order)

    @once
    def users(self) -> dict[Value, list[Node | None]]:
        """The nodes that read a value, in order; None stands for the graph's outputs."""
        users: dict[Value, list[Node | None]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                users.setdefault(value, []).append(node)
        for value in dict.fromkeys(self.outputs):
            users.setdefault(value, []).append(None)
        return users


__all__ = [
    "BUILT", "DTYPES", "FLOATS", "ORDERS", "POLICIES", "STORAGES", "Affine", "Attrs", "Dim",
    "Graph", "Layout", "Node", "Scalar", "Size", "TensorType", "Value", "add_sizes", "affine",
    "constant", "once", "scaled", "size_value", "terms", "upper_bound",
]
