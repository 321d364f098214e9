"""One atb.Graph while it is made: its tensors by name, and the shapes in which they are seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Node, Size, TensorType, Value, scaled
from graphdsl.layout import NZ_WIDTH
from graphdsl.ops.shape import reshape
from graphdsl.printer import note_text

from . import atb
from .atb import DataType, Enum, Field, Prepared, Tensor

Shape = tuple[Size, ...]
Fields = Mapping[str, Field]


@dataclass(frozen=True)
class Seen:
    """A tensor as an operation reads it."""

    tensor: Tensor
    shape: Shape

    @property
    def view(self) -> Shape | None:
        return None if self.shape == self.tensor.shape else self.shape


@dataclass(frozen=True)
class Axes:
    """Which leading sizes of the IR are one axis of ATB: (batch, tokens) is rows."""

    leads: Mapping[Shape, Dim]

    def lead(self, shape: Shape) -> tuple[Shape, Shape]:
        """The first axis, if there is one, and the sizes after it."""
        for sizes, dim in self.leads.items():
            if shape[:len(sizes)] == sizes:
                return (dim,), shape[len(sizes):]
        return (), shape

    def checked(self, value: Value, reader: Node | None = None) -> tuple[Shape, tuple[int, ...]]:
        """Those of a value. Raises GraphError for sizes that are known only at run time beside
        those of the rows."""
        lead, rest = self.lead(value.shape)
        numbers = tuple(size for size in rest if isinstance(size, int))
        if len(numbers) < len(rest):
            known = " and ".join(f"[{', '.join(map(str, sizes))}, ...]" for sizes in self.leads)
            loc = reader.loc if reader else value.loc
            raise GraphError(f"{value.name or 'a value'} is {value.type}: ATB's graphs hold rows, "
                             f"one for every token", loc, f"values are {known}")
        return lead, numbers

    def matrix(self, value: Value, columns: int | None = None) -> Shape:
        """A value as rows of `columns` numbers, or of all that a token has."""
        lead, rest = self.checked(value)
        total = product(rest)
        if not lead or (columns is None and not rest):
            return (*lead, *rest)
        width = total if columns is None else columns
        return (scaled(lead[0], total // width), width)


def product(sizes: Iterable[int]) -> int:
    """Of numbers, 1 for none."""
    total = 1
    for size in sizes:
        total *= size
    return total


def cache_shape(type: TensorType, soc: str) -> Shape:
    """A KV state as ATB sees it."""
    layout = type.layout
    assert layout is not None
    heads, dim = type.shape[2:]
    assert isinstance(heads, int)
    assert isinstance(dim, int)
    if layout.policy == "paged" and soc == "310p":
        return (atb.BLOCKS, -(-heads * dim // NZ_WIDTH), layout.block, NZ_WIDTH)
    if layout.policy == "paged":
        return (atb.BLOCKS, layout.block, heads, dim)
    if soc == "310p":
        return (1, atb.SEQUENCES, -(-heads * dim // NZ_WIDTH), atb.SLOTS, NZ_WIDTH)
    return (1, atb.SEQUENCES, atb.SLOTS, heads * dim)


def weight(param: Value) -> Tensor:
    """A param as ATB sees it."""
    if param.type.format != "nz":
        return Tensor(param.name, param.dtype, param.shape)
    n, k = param.shape
    assert isinstance(k, int)
    return Tensor(param.name, param.dtype, (1, k // NZ_WIDTH, n, NZ_WIDTH), "nz")


def source_of(value: Value) -> Value:
    """The value whose elements, in the same order, `value` is."""
    while value.node is not None and value.node.op is reshape:
        value = value.node.inputs[0]
    return value


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or with the first number that makes it one of its own."""
    number = 1
    free = name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def identifier(name: str) -> str:
    """A name that C++ takes."""
    clean = re.sub(r"\W+", "_", name).strip("_")
    return clean if re.match("[A-Za-z_]", clean) else f"t{clean}"


@dataclass(frozen=True)
class Setting:
    """What all graphs of a program share. `outside` has the tensor of every leaf and of what other
    graphs have made, under its name in the program; `ports` are the names that are taken."""

    phase: str
    soc: str
    dtype: str
    axes: Axes
    outside: dict[Value, Tensor]
    ports: frozenset[str] = frozenset()
    prepared: dict[str, Prepared] = field(default_factory=dict)

    @property
    def cache_format(self) -> str:
        return "nz" if self.soc == "310p" else "nd"


@dataclass
class Builder:
    """The nodes of one graph. What it reads and has not made is an input: `inputs` has of every
    input the value, or the name of the prepared tensor, that it is. `resolve` tells of a leaf of a
    repeat's body what it is outside."""

    setting: Setting
    resolve: Callable[[Value], Value] = lambda value: value
    made: dict[Value, Tensor] = field(default_factory=dict)
    inputs: dict[Tensor, Value | str] = field(default_factory=dict)
    nodes: list[atb.Node] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def new(self, name: str, shape: Shape, dtype: str) -> Tensor:
        """A tensor of a name that no other has."""
        free = free_name(identifier(name), self.names)
        self.names.add(free)
        return Tensor(free, dtype, shape)

    def tensor(self, value: Value) -> Tensor:
        """The tensor that has the elements of a value."""
        value = source_of(value)
        if value not in self.made:
            given = self.setting.outside[value]
            own = self.new(given.name, given.shape, given.dtype)
            self.made[value] = replace(own, format=given.format)
            self.inputs[self.made[value]] = value
        return self.made[value]

    def read(self, value: Value, shape: Shape | None = None) -> Seen:
        """A value as it lies, or in a shape."""
        tensor = self.tensor(value)
        return Seen(tensor, tensor.shape if shape is None else shape)

    def matrix(self, value: Value, columns: int | None = None) -> Seen:
        """A value as rows of `columns` numbers, or of all that a token has."""
        return self.read(value, self.setting.axes.matrix(value, columns))

    def prepared(self, kind: str, shape: Shape, of: tuple[Value, ...] = (), *, dtype: str = "i32",
                 format: str = "nd", host: bool = False, block: int = 0, window: int = 0,
                 limit: int = 0) -> Seen:
        """A tensor that the runner computes from leaves."""
        of = tuple(map(self.resolve, of))
        told = kind in ("ids", "angles") or (kind == "mask" and len(of) > 1)
        parts = [kind, of[-1].name if told else "", f"w{window}" if window else ""]
        name = free_name(identifier("_".join(part for part in parts if part)), self.setting.ports)
        known = self.setting.prepared
        before = known.get(name)
        if before and limit:
            limit = min(limit, before.limit) if before.limit else limit
        tensor = Tensor(name, dtype, shape, format, host)
        known[name] = Prepared(kind, tensor, tuple(v.name for v in of), window, limit, block)
        own = next((t for t, source in self.inputs.items() if source == name), None)
        if own is None:
            own = replace(tensor, name=self.new(name, shape, dtype).name)
            self.inputs[own] = name
        return Seen(own, shape)

    def output(self, value: Value, shape: Shape | None = None, name: str = "") -> Tensor:
        """A new tensor that has the elements of a value, as a matrix unless a shape is given."""
        node = value.node
        shape = self.setting.axes.matrix(value) if shape is None else shape
        tensor = self.new(name or (node.name if node else value.name), shape, value.dtype)
        self.made[value] = tensor
        return tensor

    def emit(self, op: str, fields: Fields, inputs: Sequence[Seen], outputs: Sequence[Tensor],
             like: Node) -> None:
        """One ATB operation, with the line and the origin of a node."""
        note = note_text(like).removeprefix(str(like.loc)).strip()
        self.nodes.append(atb.Node(op, tuple(fields.items()), tuple(s.tensor for s in inputs),
                                   tuple(outputs), tuple(s.view for s in inputs), like.loc, note))

    def elewise(self, kind: str, inputs: Sequence[Seen], output: Tensor, like: Node,
                fields: Fields | None = None) -> None:
        self.emit("Elewise", {"elewiseType": Enum(f"ELEWISE_{kind}"), **(fields or {})}, inputs,
                  [output], like)

    def cast(self, x: Seen, output: Tensor, like: Node) -> None:
        self.elewise("CAST", [x], output, like, {"outTensorType": DataType(output.dtype)})

    def split(self, x: Seen, sizes: Sequence[int], names: Sequence[str],
              like: Node) -> list[Tensor]:
        """The parts of the columns of a matrix; ATB cuts into two or three at a time."""
        rows, dtype = x.shape[0], x.tensor.dtype
        head, rest = list(sizes), 0
        if len(sizes) > 3:
            head, rest = [*sizes[:2], sum(sizes[2:])], len(sizes) - 2
        parts = [self.new(name, (rows, size), dtype)
                 for name, size in zip([*names[:2], "rest"] if rest else names, head, strict=True)]
        fields: dict[str, Field] = {"splitDim": 1, "splitNum": len(head)}
        if len(set(head)) > 1:
            fields["splitSizes"] = tuple(head)
        self.emit("Split", fields, [x], parts, like)
        if not rest:
            return parts
        last = Seen(parts[-1], parts[-1].shape)
        return [*parts[:2], *self.split(last, sizes[2:], names[2:], like)]


__all__ = ["Axes", "Builder", "Fields", "Seen", "Setting", "Shape", "cache_shape", "free_name",
           "identifier", "product", "source_of", "weight"]
