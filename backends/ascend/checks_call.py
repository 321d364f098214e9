"""One node as its rules see it: tensors by their names in ATB, the param with its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from graphdsl.errors import GraphError
from graphdsl.ir import Size

from .atb import Enum, Field, Node, Tensor
from .checks_sizes import Shape, text
from .tables import FIELDS, SLOPED_MASKS, Row


def described(tensor: Tensor, seen: Shape | None = None) -> str:
    """`'hidden' f16[rows, 64]`, and the shape in which it is seen where that is another."""
    kind = f"{tensor.dtype}{text(tensor.shape)}" + (" in NZ" if tensor.format == "nz" else "")
    as_seen = f" seen as {text(seen)}" if seen is not None and seen != tensor.shape else ""
    return f"'{tensor.name}' {kind}{as_seen}"


def fields_of(node: Node) -> dict[str, Field]:
    """All fields of the param: those that are set, and ATB's defaults."""
    return {**FIELDS[node.op], **dict(node.fields)}


def enumerator(value: Field) -> str:
    assert isinstance(value, Enum), value
    return value.name


def variant_of(node: Node) -> tuple[str, frozenset[str]]:
    """The name of a node's rows in the table, and which of their optional tensors it has."""
    fields = fields_of(node)
    extra: set[str] = set()
    match node.op:
        case "Linear":
            extra |= {"bias"} if fields["hasBias"] else set()
            return "Linear", frozenset(extra)
        case "RmsNorm" | "LayerNorm":
            kind = enumerator(fields["layerType"]).rpartition("_")[2]
            part = {"PRENORM": "preNormParam", "POSTNORM": "postNormParam"}.get(kind, "")
            extra |= {"bias"} if part and fields[f"{part}.hasBias"] else set()
            return f"{node.op} {kind}", frozenset(extra)
        case "SelfAttention":
            mask = enumerator(fields["maskType"])
            extra |= {"mask"} if mask != "MASK_TYPE_UNDEFINED" else set()
            extra |= {"slopes"} if mask in SLOPED_MASKS else set()
            return f"SelfAttention {_attention(fields)}", frozenset(extra)
        case "PagedAttention":
            extra |= {"mask"} if enumerator(fields["maskType"]) != "UNDEFINED" else set()
            return "PagedAttention", frozenset(extra)
        case "ReshapeAndCache":
            nz = enumerator(fields["kvCacheCfg"]) == "K_CACHE_V_CACHE_NZ"
            return "ReshapeAndCache" + (" NZ" if nz else ""), frozenset()
        case "Elewise":
            return f"Elewise {enumerator(fields['elewiseType'])[len('ELEWISE_'):]}", frozenset()
        case "Activation":
            kind = enumerator(fields["activationType"])[len("ACTIVATION_"):]
            return f"Activation {kind}", frozenset()
        case "Split":
            return f"Split {fields['splitNum']}", frozenset()
        case _:
            return node.op, frozenset()


def _attention(fields: dict[str, Field]) -> str:
    calc = enumerator(fields["calcType"])
    bypass = enumerator(fields["kvcacheCfg"])
    if calc == "PA_ENCODER":
        return calc
    return bypass if bypass == "K_BYPASS_V_BYPASS" else "FA"


@dataclass(frozen=True)
class Call:
    """A node whose tensors are those of one row of the table."""

    node: Node
    soc: str
    row: Row
    present: frozenset[str]
    """The row's optional tensors that are there."""

    @cached_property
    def fields(self) -> dict[str, Field]:
        return fields_of(self.node)

    @cached_property
    def places(self) -> dict[str, int]:
        """Which input of the node each tensor of the row is."""
        there = [slot.name for slot in self.row.inputs
                 if not slot.optional or slot.name in self.present]
        return {name: index for index, name in enumerate(there)}

    def has(self, name: str) -> bool:
        return name in self.places

    def tensor(self, name: str) -> Tensor:
        return self.node.inputs[self.places[name]]

    def seen(self, name: str) -> Shape:
        """The shape in which the operation sees an input."""
        return self.node.seen(self.places[name])

    def number(self, field: str) -> int:
        value = self.fields[field]
        assert isinstance(value, int), (field, value)
        return value

    def numbers(self, field: str) -> tuple[int, ...]:
        value = self.fields[field]
        assert isinstance(value, tuple), (field, value)
        return value

    def choice(self, field: str) -> str:
        return enumerator(self.fields[field])

    def error(self, problem: str, hint: str = "") -> GraphError:
        """The refusal of this node."""
        return GraphError(f"ATB's {self.row.variant}: {problem}", self.node.loc, hint)

    def wrong(self, name: str, wanted: str, hint: str = "") -> GraphError:
        """The refusal of one of its inputs: what was found and what is wanted."""
        found = described(self.tensor(name), self.seen(name))
        return self.error(f"input {self.places[name]} ({name}) is {found}, wanted {wanted}", hint)

    def field_wrong(self, field: str, wanted: str, hint: str = "") -> GraphError:
        value = self.fields[field]
        found = value.name if isinstance(value, Enum) else value
        return self.error(f"{field} is {found}, wanted {wanted}", hint)

    def rank(self, name: str, *ranks: int) -> Shape:
        """An input's shape; refuses another number of axes than `ranks`."""
        shape = self.seen(name)
        if len(shape) not in ranks:
            raise self.wrong(name, f"{' or '.join(map(str, ranks))} axes")
        return shape

    def known(self, name: str, axis: int) -> int:
        """A size of an input, which has to be a number."""
        size: Size = self.seen(name)[axis]
        if not isinstance(size, int):
            raise self.wrong(name, f"a number as size of axis {axis}")
        return size
