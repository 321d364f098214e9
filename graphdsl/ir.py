"""The IR: sizes, types, values, nodes and graphs, all frozen.

A graph is reached from its outputs; nothing is ever edited. The three functions that passes are
built from (rebuild, inline, outline) are in `graphdsl.passes.rewrite`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from graphdsl.errors import Loc

if TYPE_CHECKING:
    from graphdsl.op import Op

FLOATS = ("f32", "bf16", "f16", "f64")
DTYPES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "i32": 4, "bool": 1}
"""Bytes of every dtype. f64 is for the reference alone."""
BUILT = tuple(name for name in DTYPES if name != "f64")
"""The dtypes that a graph may have."""


@dataclass(frozen=True)
class Dim:
    """A bounded symbolic size.

    A plan dim (`source` is empty) is bound when a plan is made. A step dim is read at every step
    from the first element of the input named by `source`; buffers are sized by its `hi`.
    """

    name: str
    lo: int = 1
    hi: int = 1 << 20
    source: str = ""

    def __str__(self) -> str:
        return self.name

    def __add__(self, other: Size) -> Size:
        return add_sizes(self, other)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return add_sizes(self, scaled(other, -1))

    def __mul__(self, factor: int) -> Size:
        return scaled(self, factor)

    __rmul__ = __mul__


@dataclass(frozen=True)
class Affine:
    """A sum of dims with whole coefficients, and a constant: `past + tokens`, `2*tokens + 1`."""

    terms: tuple[tuple[Dim, int], ...]
    const: int

    def __str__(self) -> str:
        parts = [dim.name if k == 1 else f"{k}*{dim.name}" for dim, k in self.terms]
        return " + ".join(parts + ([str(self.const)] if self.const else []))

    def __add__(self, other: Size) -> Size:
        return add_sizes(self, other)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return add_sizes(self, scaled(other, -1))

    def __mul__(self, factor: int) -> Size:
        return scaled(self, factor)

    __rmul__ = __mul__


Size = int | Dim | Affine


def terms(size: Size) -> dict[Dim, int]:
    """The coefficient of every dim in `size`."""
    if isinstance(size, Dim):
        return {size: 1}
    return dict(size.terms) if isinstance(size, Affine) else {}


def constant(size: Size) -> int:
    """The part of `size` that depends on no dim."""
    if isinstance(size, Dim):
        return 0
    return size.const if isinstance(size, Affine) else size


def affine(coefficients: Mapping[Dim, int], const: int) -> Size:
    """The simplest size with these terms: an int or a Dim where it is one."""
    kept = {dim: k for dim, k in coefficients.items() if k}
    if not kept:
        return const
    if const == 0 and list(kept.values()) == [1]:
        return next(iter(kept))
    return Affine(tuple(sorted(kept.items(), key=lambda item: item[0].name)), const)


def add_sizes(a: Size, b: Size) -> Size:
    total = terms(a)
    for dim, k in terms(b).items():
        total[dim] = total.get(dim, 0) + k
    return affine(total, constant(a) + constant(b))


def scaled(size: Size, factor: int) -> Size:
    return affine({dim: k * factor for dim, k in terms(size).items()}, constant(size) * factor)


def size_value(size: Size, dims: Mapping[str, int]) -> int:
    """The number that `size` stands for; KeyError when a dim has no value."""
    return sum(k * dims[dim.name] for dim, k in terms(size).items()) + constant(size)


def upper_bound(size: Size) -> int:
    """The largest number that `size` can stand for."""
    return constant(size) + sum(k * (d.hi if k > 0 else d.lo) for d, k in terms(size).items())


@dataclass(frozen=True)
class Layout:
    """How a KV state lies in memory: the order of its axes (batch, seq, heads n, dim) and the
    policy by which rows are placed. The logical shape is always bsnd."""

    order: str = "bsnd"
    policy: str = "contiguous"

    def __str__(self) -> str:
        return self.order if self.policy == "contiguous" else f"{self.order}:{self.policy}"

    @property
    def permutation(self) -> tuple[int, ...]:
        """Logical axis of every physical axis."""
        return tuple("bsnd".index(axis) for axis in self.order)


@dataclass(frozen=True)
class TensorType:
    """The shape and dtype of a value, and for a KV state its layout."""

    shape: tuple[Size, ...]
    dtype: str
    layout: Layout | None = None

    def __str__(self) -> str:
        layout = f"@{self.layout}" if self.layout else ""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]{layout}"


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
