"""A node against the tables: its param's fields, the number of its tensors, dtypes and formats."""

from __future__ import annotations

from collections.abc import Iterator

from graphdsl.errors import GraphError

from .atb import DataType, Enum, Field, Node, Tensor
from .checks_call import Call, described, variant_of
from .tables import ENUMS, EXPLICIT, FIELDS, ROWS, WITHOUT_BF16, Row, Slot

F32_HINT = "ATB computes in f16 and bf16: --dtype f16 or --dtype bf16"
F32_RANGE = (2.0 ** -126, (2 - 2.0 ** -23) * 2.0 ** 127)
BF16_HINT = "--dtype f16, or --soc 910b"


def check_fields(node: Node) -> None:
    """Refuses an operation and fields that the tables do not have."""
    if node.op not in FIELDS:
        raise GraphError(f"ATB has no operation {node.op}", node.loc,
                         f"there are {', '.join(sorted(FIELDS))}")
    known = FIELDS[node.op]
    for path, value in node.fields:
        if path not in known:
            raise GraphError(f"ATB's {node.op}Param: no field {path}", node.loc,
                             f"there are {', '.join(known)}" if known else "it has none")
        _check_value(node, path, value)
    names = [path for path, _ in node.fields]
    for path in EXPLICIT.get(node.op, ()):
        if path not in names:
            raise GraphError(f"ATB's {node.op}Param: {path} is not set", node.loc,
                             "its default is no choice: set it always")


def _check_value(node: Node, path: str, value: Field) -> None:
    default = FIELDS[node.op][path]
    fits = isinstance(value, (int, float) if isinstance(default, float) else type(default))
    if isinstance(default, bool) != isinstance(value, bool) or not fits:
        raise GraphError(f"ATB's {node.op}Param: {path} is {value!r}, wanted "
                         f"{'an enumerator' if isinstance(default, Enum) else _kind(default)}",
                         node.loc)
    # Beyond them C++ has no such constant, or another one.
    if isinstance(value, float) and value and not F32_RANGE[0] <= abs(value) <= F32_RANGE[1]:
        raise GraphError(f"ATB's {node.op}Param: {path} is {value!r}, wanted 0 or a number of "
                         f"{F32_RANGE[0]:.2g} to {F32_RANGE[1]:.2g}", node.loc, "it is a float")
    if not isinstance(value, Enum) or not isinstance(default, Enum):
        return
    choices = ENUMS[node.op, path]
    if value.name not in choices or value.free != default.free:
        raise GraphError(f"ATB's {node.op}Param: {path} is {value.name}, wanted one of "
                         f"{', '.join(choices)}", node.loc)


def _kind(default: Field) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number",
             tuple: "whole numbers", DataType: "a dtype"}
    return names[type(default)]


def called(node: Node, soc: str) -> Call:
    """The node as its rules see it. Refuses wrong numbers of tensors, dtypes and formats."""
    variant, present = variant_of(node)
    rows = [row for row in ROWS if row.variant == variant]
    if not rows:
        raise GraphError(f"ATB's table has no line for {variant}", node.loc)
    _check_count(node, "input", variant, _there(rows[0].inputs, present), node.inputs)
    _check_count(node, "output", variant, _there(rows[0].outputs, present), node.outputs)
    _check_bf16(node, variant, soc)
    present &= {slot.name for row in rows for slot in row.inputs}
    here = [row for row in rows if soc in row.socs
            and present <= {slot.name for slot in row.inputs}]
    call = Call(node, soc, _matching(node, here, present, soc), present)
    for slot, tensor in zip(_there(call.row.inputs, present), node.inputs, strict=True):
        if slot.host and not tensor.host:
            raise call.error(f"input {call.places[slot.name]} ({slot.name}) is "
                             f"{described(tensor)} without host values, wanted a host tensor",
                             "ATB reads it on the host when it sets up")
    return call


def _there(slots: tuple[Slot, ...], present: frozenset[str]) -> list[Slot]:
    return [slot for slot in slots if not slot.optional or slot.name in present]


def _check_count(node: Node, kind: str, variant: str, slots: list[Slot],
                 tensors: tuple[Tensor, ...]) -> None:
    if len(slots) == len(tensors):
        return
    wanted = ", ".join(slot.name for slot in slots) or "none"
    raise GraphError(f"ATB's {variant}: {len(tensors)} {kind}s, wanted {len(slots)}: {wanted}",
                     node.loc)


def _check_bf16(node: Node, variant: str, soc: str) -> None:
    for tensor in node.inputs + node.outputs:
        if tensor.dtype == "bf16" and soc in WITHOUT_BF16:
            raise GraphError(f"ATB's {variant}: {described(tensor)}, but {soc} has no bf16",
                             node.loc, BF16_HINT)


Wrong = tuple[str, Slot, Tensor]
"""A tensor that does not fit its slot: what it is called in sentences, the slot, the tensor."""


def _matching(node: Node, rows: list[Row], present: frozenset[str], soc: str) -> Row:
    """The row that has the dtypes and formats of a node, or the refusal by the closest one."""
    tries: list[tuple[int, Row, str, list[Wrong]]] = []
    for row in rows:
        for dtype in row.types:
            wrong = list(_misfits(node, row, dtype, present))
            if not wrong:
                return row
            tries.append((len(wrong), row, dtype, wrong))
    if not tries:
        raise GraphError(f"ATB has no {variant_of(node)[0]} on {soc}", node.loc)
    _, row, dtype, wrong = min(tries, key=lambda tried: tried[0])
    label, slot, tensor = wrong[0]
    wanted = _wanted(node, rows, slot, dtype, tensor)
    wide = tensor.dtype == "f32" and "f32" not in wanted and " or " in wanted
    raise GraphError(f"ATB's {row.variant}: {label} is {described(tensor)}, wanted {wanted}",
                     node.loc, F32_HINT if wide else _legal(rows, soc))


def _misfits(node: Node, row: Row, dtype: str, present: frozenset[str]) -> Iterator[Wrong]:
    for kind, slots, tensors in (("input", row.inputs, node.inputs),
                                 ("output", row.outputs, node.outputs)):
        pairs = zip(_there(slots, present), tensors, strict=True)
        for index, (slot, tensor) in enumerate(pairs):
            dtypes = [dtype if name == "T" else name for name in slot.dtypes]
            if tensor.dtype not in dtypes or tensor.format not in slot.formats:
                yield f"{kind} {index} ({slot.name})", slot, tensor


def _wanted(node: Node, rows: list[Row], slot: Slot, dtype: str, tensor: Tensor) -> str:
    """What the slot takes: all dtypes where none of the others says which, else just that one."""
    if "T" in slot.dtypes:
        settled = any(other.dtype == dtype for other in node.inputs if other is not tensor)
        types = dict.fromkeys(name for row in rows for name in row.types)
        dtypes = [dtype] if settled and tensor.dtype != dtype else list(types)
    else:
        dtypes = list(slot.dtypes)
    found = tensor.dtype in dtypes
    formats = " or ".join(name.upper() for name in slot.formats)
    return f"the format {formats}" if found else " or ".join(dtypes)


def _legal(rows: list[Row], soc: str) -> str:
    """The lines of the table, as a hint."""
    lines = []
    for row in rows:
        inputs, outputs = (", ".join(f"{slot.name} {'/'.join(slot.dtypes)}" for slot in slots)
                           for slots in (row.inputs, row.outputs))
        own = f" (T: {'/'.join(row.types)})" if any("T" in s.dtypes for s in row.inputs) else ""
        lines.append(f"{inputs} -> {outputs}{own}")
    return f"on {soc} it takes {'; or '.join(lines)}"
