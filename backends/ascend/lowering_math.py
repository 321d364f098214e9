"""Operations and kernels that become ATB operations on their own: norms, linears, activations,
pointwise maths, and what moves columns and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphdsl.errors import GraphError
from graphdsl.ir import Node, Value
from graphdsl.op import constant
from graphdsl.ops.math import maximum

from .atb import PICKED, ROWS, DataType, Enum
from .lowering_graph import Builder, Fields, Seen, Shape, product, source_of

Rule = Callable[[Builder, Node], None]


def _width(value: Value, node: Node) -> int:
    """The last size of a value of a node. Raises GraphError where it is no number."""
    size = value.shape[-1]
    if not isinstance(size, int):
        raise GraphError(f"{node.name}: the last size of {value.type} is {size}, wanted a number",
                         node.loc, "ATB's graphs know their columns: write it in the signature")
    return size


def _rowwise(b: Builder, value: Value, node: Node) -> Seen:
    return b.matrix(value, _width(value, node))


def _linear(b: Builder, node: Node) -> None:
    x, w, *bias = node.inputs
    if len(w.shape) != 2 or not w.is_param:
        raise GraphError(f"linear: the weight is {w.type}, computed at every step", node.loc,
                         "the ascend backend multiplies by params")
    fields: Fields = {"transposeA": False, "transposeB": True, "hasBias": bool(bias),
                      "outDataType": DataType("")}
    y = node.outputs[0]
    b.emit("Linear", fields, [_rowwise(b, x, node), b.read(w), *map(b.read, bias)],
           [b.output(y, b.setting.axes.matrix(y, _width(y, node)))], node)


def _check_gamma(node: Node, weight: Value) -> None:
    dtype = node.outputs[0].dtype
    if weight.dtype != dtype:
        raise GraphError(f"{node.name}: the weight is {weight.type} beside {dtype}, and ATB's "
                         "RmsNorm takes one dtype", node.loc,
                         f'cast(weight, dtype="{dtype}"), which is done once, or --backend cpu')


def _rms_norm(b: Builder, node: Node) -> None:
    x, weight = node.inputs
    _check_gamma(node, weight)
    fields: Fields = {"layerType": Enum("RMS_NORM_NORM"), "normParam.epsilon": node.attr["eps"]}
    y = node.outputs[0]
    b.emit("RmsNorm", fields, [_rowwise(b, x, node), b.read(weight)],
           [b.output(y, b.setting.axes.matrix(y, _width(y, node)))], node)


def _add_rms_norm(b: Builder, node: Node) -> None:
    x, residual, weight = node.inputs
    _check_gamma(node, weight)
    fields: Fields = {"layerType": Enum("RMS_NORM_PRENORM"), "preNormParam.hasBias": False,
                      "preNormParam.epsilon": node.attr["eps"]}
    shape = b.setting.axes.matrix(x, _width(x, node))
    names = zip(node.outputs, ("rms_norm", "sum"), strict=True)
    b.emit("RmsNorm", fields, [_rowwise(b, residual, node), _rowwise(b, x, node), b.read(weight)],
           [b.output(v, shape, name) for v, name in names], node)


def _layer_norm(b: Builder, node: Node) -> None:
    if len(node.inputs) < 3:
        raise GraphError("layer_norm without a bias: ATB's LayerNorm has one", node.loc,
                         "give it a bias param of zeros")
    x, weight, bias = node.inputs
    fields: Fields = {"layerType": Enum("LAYER_NORM_NORM"), "normParam.epsilon": node.attr["eps"],
                      "normParam.beginNormAxis": 1, "normParam.beginParamsAxis": 1}
    y = node.outputs[0]
    b.emit("LayerNorm", fields, [_rowwise(b, x, node), b.read(weight), b.read(bias)],
           [b.output(y, b.setting.axes.matrix(y, _width(y, node)))], node)


def _softmax(b: Builder, node: Node) -> None:
    y = node.outputs[0]
    b.emit("Softmax", {"axes": (1,)}, [_rowwise(b, node.inputs[0], node)],
           [b.output(y, b.setting.axes.matrix(y, _width(y, node)))], node)


@dataclass(frozen=True)
class _Activation:
    """An Operation that is one Activation of ATB."""

    kind: str
    fields: Fields

    def __call__(self, b: Builder, node: Node) -> None:
        fields: Fields = {"activationType": Enum(f"ACTIVATION_{self.kind}", free=True),
                          **self.fields}
        b.emit("Activation", fields, [b.matrix(node.inputs[0])], [b.output(node.outputs[0])], node)


def _relu(b: Builder, node: Node) -> None:
    """ATB's relu has no f16: its operand is cast to f32 and its result back, which rounds
    nothing."""
    relu = {"activationType": Enum("ACTIVATION_RELU", free=True)}
    x, y = b.matrix(node.inputs[0]), node.outputs[0]
    if y.dtype != "f16":
        b.emit("Activation", relu, [x], [b.output(y)], node)
        return
    wide = [b.new(name, x.shape, "f32") for name in ("relu_f32", "relu_y")]
    b.cast(x, wide[0], node)
    b.emit("Activation", relu, [Seen(wide[0], x.shape)], [wide[1]], node)
    b.cast(Seen(wide[1], x.shape), b.output(y), node)


def _swiglu(b: Builder, node: Node) -> None:
    """Of the two halves of one matrix ATB has it whole."""
    gate, up = map(source_of, node.inputs)
    y = node.outputs[0]
    merged = halves_of(node)
    if merged is not None:
        fields: Fields = {"activationType": Enum("ACTIVATION_SWIGLU_FORWARD", free=True), "dim": -1}
        b.emit("Activation", fields, [_rowwise(b, merged, node)],
               [b.output(y, b.setting.axes.matrix(y, _width(y, node)))], node)
        return
    shape = b.setting.axes.matrix(gate)
    silu = b.new("silu", shape, y.dtype)
    fields = {"activationType": Enum("ACTIVATION_SWISH", free=True), "scale": 1.0}
    b.emit("Activation", fields, [b.read(gate, shape)], [silu], node)
    b.elewise("MUL", [Seen(silu, shape), b.read(up, shape)], b.output(y), node)


def halves_of(node: Node) -> Value | None:
    """What a swiglu's gate and up are the first and the second half of, if they are."""
    gate, up = map(source_of, node.inputs)
    made = gate.node
    if made is None or made is not up.node or made.name != "split" or len(made.outputs) != 2:
        return None
    last = made.attr["axis"] in (-1, len(made.inputs[0].shape) - 1)
    equal = gate.shape == up.shape and (gate.index, up.index) == (0, 1)
    same = node.inputs[0].shape == gate.shape and node.inputs[1].shape == up.shape
    return made.inputs[0] if last and equal and same else None


def _number(value: Value) -> float | None:
    """The number that a constant is."""
    node = value.node
    if node is None or node.op is not constant or not isinstance(node.attr["value"], int | float):
        return None
    return float(node.attr["value"])


def _muls(b: Builder, node: Node, x: Value, factor: float) -> None:
    b.elewise("MULS", [b.matrix(x)], b.output(node.outputs[0]), node,
              {"mulsParam.varAttr": factor})


def _mul(b: Builder, node: Node) -> None:
    for x, other in (node.inputs, node.inputs[::-1]):
        factor = _number(other)
        if factor is not None:
            _muls(b, node, x, factor)
            return
    _pointwise("MUL")(b, node)


def _div(b: Builder, node: Node) -> None:
    x, other = node.inputs
    divisor = _number(other)
    if divisor:
        _muls(b, node, x, 1.0 / divisor)
        return
    _pointwise("REALDIV")(b, node)


def _pointwise(kind: str) -> Rule:
    """One Elewise operation; operands are broadcast."""
    def rule(b: Builder, node: Node) -> None:
        numbers = [v for v in node.inputs if v.node is not None and v.node.op is constant]
        if numbers:
            assert numbers[0].node is not None
            raise GraphError(f"{node.name} with the number {numbers[0].node.attr['value']}: ATB's "
                             f"Elewise {kind} takes tensors alone", node.loc,
                             "make it a Param of one value, or of the width of the other operand")
        y = node.outputs[0]
        if all(v.shape == y.shape for v in node.inputs):
            b.elewise(kind, [b.matrix(v) for v in node.inputs], b.output(y), node)
            return
        seen = [b.read(v, _collapsed(b, v)) for v in node.inputs]
        b.elewise(kind, seen, b.output(y, _collapsed(b, y)), node)
    return rule


def _collapsed(b: Builder, value: Value) -> Shape:
    """Rows, then the axes of the IR that follow."""
    lead, rest = b.setting.axes.checked(value)
    return (*lead, *rest)


def _cast(b: Builder, node: Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    pair = {x.dtype, y.dtype}
    if pair not in ({"f16", "f32"}, {"bf16", "f32"}):
        raise GraphError(f"cast of {x.dtype} to {y.dtype}: ATB casts between f32 and 16 bits only",
                         node.loc, "rotary angles are computed from an input of positions [batch, "
                         "tokens] alone" if "i32" in pair else "cast to f32 first")
    b.cast(b.matrix(x), b.output(y), node)


def _split(b: Builder, node: Node) -> None:
    x = node.inputs[0]
    lead, rest = b.setting.axes.checked(x)
    axis = node.attr["axis"] % len(x.shape)
    at = axis - (len(x.shape) - len(rest))
    if at < 0 or not lead:
        raise GraphError(f"split of {x.type} along axis {axis}: what follows would not be rows",
                         node.loc, "the ascend backend cuts columns")
    after = product(rest[at + 1:])
    sizes = [size * after for size in node.attr["sizes"]]
    names = [f"split_{'abcdefghijklmnopqrstuvwxyz'[i % 26]}" for i in range(len(sizes))]
    if len(sizes) == 1:
        b.made[node.outputs[0]] = b.tensor(x)
        return
    parts = b.split(b.matrix(x, rest[at] * after), sizes, names, node)
    b.made.update(zip(node.outputs, parts, strict=True))


def _slice(b: Builder, node: Node) -> None:
    """The middle part of a split; ATB 8.1's Slice has no table of dtypes."""
    x, start, size = node.inputs[0], node.attr["start"], node.attr["size"]
    lead, rest = b.setting.axes.checked(x)
    axis = node.attr["axis"] % len(x.shape)
    at = axis - (len(x.shape) - len(rest))
    if at < 0 or not lead:
        raise GraphError(f"slice of {x.type} along axis {axis}: what follows would not be rows",
                         node.loc, "the ascend backend cuts columns; take_rows picks rows")
    after = product(rest[at + 1:])
    cuts = [(start, "before"), (size, "slice"), (rest[at] - start - size, "after")]
    kept = [(count * after, name) for count, name in cuts if count]
    parts = b.split(b.matrix(x, rest[at] * after), [c for c, _ in kept], [n for _, n in kept], node)
    b.made[node.outputs[0]] = parts[[name for _, name in kept].index("slice")]


def _concat(b: Builder, node: Node) -> None:
    """Two at a time."""
    y, inputs = node.outputs[0], node.inputs
    lead, rest = b.setting.axes.checked(y)
    at = node.attr["axis"] % len(y.shape) - (len(y.shape) - len(rest))
    if at < 0 or not lead:
        raise GraphError(f"concat along axis {node.attr['axis']} of {y.type}: rows are not joined",
                         node.loc, "the ascend backend joins columns")
    after = product(rest[at + 1:])
    widths = [after * b.setting.axes.checked(v)[1][at] for v in inputs]
    total = b.matrix(inputs[0], widths[0])
    for i in range(1, len(inputs)):
        shape = (total.shape[0], sum(widths[:i + 1]))
        last = i == len(inputs) - 1
        out = b.output(y, shape) if last else b.new("concat", shape, y.dtype)
        b.emit("Concat", {"concatDim": 1}, [total, b.matrix(inputs[i], widths[i])], [out], node)
        total = Seen(out, shape)


def _transpose(b: Builder, node: Node) -> None:
    x, y, order = node.inputs[0], node.outputs[0], node.attr["order"]
    lead, rest = b.setting.axes.checked(x)
    skipped = len(x.shape) - len(rest)
    if order[:skipped] != tuple(range(skipped)):
        raise GraphError(f"transpose of {x.type} by {order}: rows would not stay rows", node.loc,
                         "the ascend backend turns what a token has; heads come after tokens")
    perm = tuple(axis - skipped + len(lead) for axis in order[skipped:])
    b.emit("Transpose", {"perm": (*range(len(lead)), *perm)}, [b.read(x, (*lead, *rest))],
           [b.output(y, _collapsed(b, y))], node)


def index_of(value: Value) -> Value | None:
    """The input of whole numbers that rows are looked up by; padding, at -1, may be lifted to 0,
    which the runner does anyhow."""
    value = source_of(value)
    if value.node is not None and value.node.op is maximum:
        a, c = value.node.inputs
        value = source_of(a if _number(c) == 0.0 else c if _number(a) == 0.0 else value)
    return value if value.node is None and value.dtype == "i32" else None


def _embedding(b: Builder, node: Node) -> None:
    table, ids = (node.inputs if node.name == "gather" else node.inputs[::-1])
    given = index_of(ids)
    if given is None:
        raise GraphError(f"{node.name}: the numbers of rows are computed", node.loc,
                         "rows are looked up by an input of whole numbers")
    if not table.is_param:
        what = "computed" if table.node else f"{table.kind or 'input'} {table.name!r}"
        raise GraphError(f"{node.name}: its table, {table.type}, is {what}", node.loc,
                         "rows are looked up in a param")
    lead, _ = b.setting.axes.checked(ids, node)
    limit = table.shape[0]
    assert isinstance(limit, int)
    picks = b.prepared("ids", lead or (ROWS,), (given,), limit=limit)
    y = node.outputs[0]
    b.emit("Gather", GATHER, [b.read(table), picks], [b.output(y)], node)


GATHER: Fields = {"axis": 0, "batchDims": 0}


def _take_rows(b: Builder, node: Node) -> None:
    x, rows = node.inputs
    given = index_of(rows)
    if given is None:
        raise GraphError("take_rows: the numbers of rows are computed", node.loc,
                         "make them an input of the Model")
    picks = b.prepared("picked", (PICKED,), (given,))
    b.emit("Gather", GATHER, [b.matrix(x), picks], [b.output(node.outputs[0])], node)


RULES: Mapping[str, Rule] = {
    "linear": _linear, "matmul_nt": _linear, "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm, "layer_norm": _layer_norm, "softmax": _softmax,
    "silu": _Activation("SWISH", {"scale": 1.0}),
    "gelu_tanh": _Activation("GELU", {"geluMode": Enum("TANH_MODE")}),
    "relu": _relu, "swiglu": _swiglu, "mul": _mul, "div": _div, "add": _pointwise("ADD"),
    "sub": _pointwise("SUB"), "neg": _pointwise("NEG"), "tanh": _pointwise("TANH"),
    "cos": _pointwise("COS"), "sin": _pointwise("SIN"), "cast": _cast, "split": _split,
    "slice": _slice, "concat": _concat, "transpose": _transpose, "embedding": _embedding,
    "gather": _embedding, "take_rows": _take_rows,
}
"""What every node but ropes and attention becomes, by name."""


def reads(node: Node) -> tuple[Value, ...]:
    """The operands of a node that ATB's operations read: numbers are fields, and what rows are
    looked up by is prepared on the host."""
    if node.name in ("embedding", "gather"):
        return tuple(v for v in node.inputs if v.dtype != "i32")
    if node.name == "take_rows":
        return node.inputs[:1]
    if node.name == "swiglu":
        merged = halves_of(node)
        return (merged,) if merged is not None else node.inputs
    return tuple(v for v in node.inputs if v.node is None or v.node.op is not constant)


__all__ = ["RULES", "halves_of", "index_of", "reads"]
