"""What ATB demands of the shapes of operations that are not attention, and the shapes they make."""

from __future__ import annotations

from math import prod

from graphdsl.ir import DTYPES, Size, add_sizes

from .checks_call import Call
from .checks_sizes import Shape, Shapes, divided, is_multiple, same, same_shape, text
from .tables import NORM_BYTES, NZ_WIDTH, ROPE_DIMS, SPLITS


def linear(call: Call) -> Shapes:
    x = call.rank("x", 2, 3)
    axis, k = (-2, x[-1]) if not call.fields["transposeA"] else (-1, x[-2])
    n, k_of_w = _weight(call)
    if not same(k, k_of_w):
        raise call.wrong("w", f"{k} columns as x has (transposeB says that w is [n, k])"
                         if call.fields["transposeB"] else
                         f"{k} rows as x has (without transposeB w is [k, n])")
    if call.has("bias") and not any(same_shape(call.seen("bias"), s) for s in ((n,), (1, n))):
        raise call.wrong("bias", f"the shape [{n}] or [1, {n}]")
    return ((*x[:-2], x[axis], n),)


def _weight(call: Call) -> tuple[Size, Size]:
    """n and k of the weight; one in NZ may say how it lies: [1, columns / 16, rows, 16]."""
    w = call.rank("w", 2, 4) if call.tensor("w").format == "nz" else call.rank("w", 2)
    if len(w) == 4:
        if w[0] != 1 or w[3] != NZ_WIDTH:
            raise call.wrong("w", f"[1, columns / {NZ_WIDTH}, rows, {NZ_WIDTH}] in NZ")
        w = (w[2], w[1] * NZ_WIDTH)
    return (w[0], w[1]) if call.fields["transposeB"] else (w[1], w[0])


def rms_norm(call: Call) -> Shapes:
    x = call.seen("x")
    part = {"NORM": "normParam", "PRENORM": "preNormParam", "POSTNORM": "postNormParam"}
    own = part[call.row.variant.split()[1]]
    _check_epsilon(call, own)
    for name in (name for name in ("x", "bias", "res", "gamma") if call.has(name)):
        last = call.seen(name)[-1]
        numbers = NORM_BYTES // DTYPES[call.tensor(name).dtype]
        if not is_multiple(last, numbers):
            raise call.wrong(name, f"a last size that is a multiple of {NORM_BYTES} bytes, "
                             f"{numbers} numbers", "pad the hidden size")
        if not same(last, x[-1]):
            raise call.wrong(name, f"the last size {x[-1]}, as x has")
    if any(size != 1 for size in call.seen("gamma")[:-1]):
        raise call.wrong("gamma", f"the shape [{x[-1]}]")
    if call.has("res") and not same_shape(call.seen("res"), x):
        raise call.wrong("res", f"the shape {text(x)}, as x has")
    return (x,) * len(call.row.outputs)


def _check_epsilon(call: Call, own: str) -> None:
    if call.fields[f"{own}.epsilon"] == 0:
        raise call.field_wrong(f"{own}.epsilon", "another number than 0")
    for path, _ in call.node.fields:
        if "." in path and not path.startswith(own + "."):
            raise call.error(f"{path} is set, but it reads {own} only",
                             f"set {own}.{path.partition('.')[2]}")


def layer_norm(call: Call) -> Shapes:
    x = call.seen("x")
    for field in ("normParam.beginNormAxis", "normParam.beginParamsAxis"):
        if call.number(field) not in (-1, len(x) - 1):
            raise call.field_wrong(field, f"the last axis, -1 or {len(x) - 1}",
                                   "its default 0 would normalise over all rows together")
    if call.fields["normParam.epsilon"] == 0:
        raise call.field_wrong("normParam.epsilon", "another number than 0")
    for name in ("gamma", "beta"):
        if not same_shape(call.seen(name), x[-1:]):
            raise call.wrong(name, f"the shape [{x[-1]}]")
    return (x,)


def rope(call: Call) -> Shapes:
    q, k = call.rank("q", 2, 4), call.rank("k", 2, 4)
    cos, sin = call.rank("cos", 2), call.rank("sin", 2)
    if not same_shape(cos, sin):
        raise call.wrong("sin", f"the shape {text(cos)}, as cos has")
    dims = call.known("cos", 1)
    low, high = ROPE_DIMS
    if not low <= dims <= high:
        raise call.wrong("cos", f"{low} to {high} columns")
    if call.number("rotaryCoeff") not in (2, 4, dims):
        raise call.field_wrong("rotaryCoeff", f"2 (half-split), 4 (two halves) or {dims}, the "
                               "columns of cos (interleaved pairs)",
                               "to rotate a part of a head: Split, Rope, Concat")
    if call.number("rotaryCoeff") in (2, 4) and dims % call.number("rotaryCoeff"):
        raise call.wrong("cos", f"columns that {call.number('rotaryCoeff')} (rotaryCoeff) divides")
    return _rope_rows(call, q, k, dims)


def _rope_rows(call: Call, q: Shape, k: Shape, dims: int) -> Shapes:
    if len(q) != len(k):
        raise call.wrong("k", f"{len(q)} axes, as q has")
    hq, hk = _hidden(call, "q"), _hidden(call, "k")
    if hk % dims:
        raise call.wrong("k", f"a last size that {dims}, the columns of cos, divides")
    if hq % hk:
        raise call.wrong("q", f"a last size that {hk}, that of k, divides")
    if not all(map(same, q[:-2] if len(q) == 4 else q[:1], k)):
        raise call.wrong("k", f"the rows {q[0]}, as q has")
    if len(q) == 2 and not same(call.seen("cos")[0], q[0]):
        raise call.wrong("cos", f"a row for each of {q[0]}", "gather it by positions first")
    call.rank("seqLen", 1)
    return q, k


def _hidden(call: Call, name: str) -> int:
    """heads * dim of a tensor [rows, heads * dim] or [b, s, heads, dim]."""
    axes = range(2, 4) if len(call.seen(name)) == 4 else range(1, 2)
    return prod(call.known(name, axis) for axis in axes)


def elewise(call: Call) -> Shapes:
    kind = call.row.variant.split()[1]
    if kind == "CAST":
        wanted = call.node.outputs[0].dtype
        if getattr(call.fields["outTensorType"], "dtype", "") != wanted:
            raise call.error(f"outTensorType is not {wanted}, the dtype of its output")
    if kind == "MULS" and "mulsParam.varAttr" not in dict(call.node.fields):
        raise call.error("mulsParam.varAttr is not set", "it is the factor")
    if len(call.places) == 1:
        return (call.seen("x"),)
    return (_broadcast(call),)


def _broadcast(call: Call) -> Shape:
    x, y = call.seen("x"), call.seen("y")
    rank = max(len(x), len(y))
    pairs = list(zip((1,) * (rank - len(x)) + x, (1,) * (rank - len(y)) + y, strict=True))
    if not all(a == 1 or b == 1 or same(a, b) for a, b in pairs):
        raise call.wrong("y", f"a shape that goes with {text(x)} of x: sizes that are equal or 1")
    return tuple(b if a == 1 else a for a, b in pairs)


def activation(call: Call) -> Shapes:
    x = call.seen("x")
    if call.row.variant.split()[1] != "SWIGLU_FORWARD":
        return (x,)
    axis = _axis(call, "dim", call.number("dim"), x)
    half = divided(x[axis], 2)
    if half is None:
        raise call.wrong("x", f"an even size of axis {axis}, the gate and up")
    return ((*x[:axis], half, *x[axis + 1:]),)


def _axis(call: Call, field: str, axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise call.error(f"{field} is {axis}, wanted an axis of {text(shape)}")
    return axis % len(shape)


def split(call: Call) -> Shapes:
    x, count, sizes = call.seen("x"), call.number("splitNum"), call.numbers("splitSizes")
    axis = _axis(call, "splitDim", call.number("splitDim"), x)
    assert count in SPLITS, count
    if not sizes:
        part = divided(x[axis], count)
        if part is None:
            raise call.wrong("x", f"a size of axis {axis} that {count} divides",
                             "give splitSizes for parts that are not equal")
        return ((*x[:axis], part, *x[axis + 1:]),) * count
    if call.number("splitDim") < 0:
        raise call.field_wrong("splitDim", "0 or more, as there are splitSizes")
    if len(sizes) != count or min(sizes) < 1:
        raise call.field_wrong("splitSizes", f"{count} sizes of at least 1, as splitNum says")
    if not same(sum(sizes), x[axis]):
        raise call.field_wrong("splitSizes", f"sizes whose sum is {x[axis]}, that of axis {axis}")
    return tuple((*x[:axis], size, *x[axis + 1:]) for size in sizes)


def concat(call: Call) -> Shapes:
    x, y = call.seen("x"), call.seen("y")
    axis = _axis(call, "concatDim", call.number("concatDim"), x)
    if len(x) != len(y) or not all(same(a, b) for i, (a, b) in enumerate(zip(x, y, strict=True))
                                   if i != axis):
        raise call.wrong("y", f"the shape {text(x)} but for axis {axis}, as x has")
    return ((*x[:axis], add_sizes(x[axis], y[axis]), *x[axis + 1:]),)


def transpose(call: Call) -> Shapes:
    x, perm = call.seen("x"), call.numbers("perm")
    if sorted(perm) != list(range(len(x))):
        raise call.field_wrong("perm", f"the axes 0 to {len(x) - 1} in some order")
    return (tuple(x[axis] for axis in perm),)


def softmax(call: Call) -> Shapes:
    x, axes = call.seen("x"), call.numbers("axes")
    found = {_axis(call, "axes", axis, x) for axis in axes}
    if not axes or len(found) < len(axes):
        raise call.field_wrong("axes", f"one or more different axes of {text(x)}")
    return (x,)


def gather(call: Call) -> Shapes:
    table, indices = call.seen("table"), call.seen("indices")
    axis = _axis(call, "axis", call.number("axis"), table)
    if call.number("batchDims") != 0:
        raise call.field_wrong("batchDims", "0")
    return ((*table[:axis], *indices, *table[axis + 1:]),)
