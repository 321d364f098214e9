"""Loop bodies as C++: phases of vector statements over the columns of a row.

All floating arithmetic is f32; a value is rounded to bf16 where the graph casts to it and where it
leaves the loop (its readers inside then see the rounded value too). Every row reduction ends a
phase; what a later phase needs is computed again where that is cheap, and kept in a row of
scratch otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphdsl.expr import ONE, ZERO, Poly, product
from graphdsl.ir import FLOATS, Graph, Node, Size, Value
from graphdsl.passes.loops import loop_space
from graphdsl.views import Ref, collapsed_rows

from .c_types import CTYPES

EXPRESSIONS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}",
    "abs": "v_abs({0})", "exp": "v_exp({0})", "log": "v_log({0})", "sqrt": "v_sqrt({0})",
    "rsqrt": "v_rsqrt({0})", "tanh": "v_tanh({0})", "erf": "v_erf({0})", "sin": "v_sin({0})",
    "cos": "v_cos({0})", "floor": "v_floor({0})", "pow": "v_pow({0}, {1})",
    "maximum": "v_max({0}, {1})", "minimum": "v_min({0}, {1})",
    "less": "{0} < {1}", "less_equal": "{0} <= {1}", "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}", "equal": "{0} == {1}",
    "logical_and": "{0} & {1}", "logical_or": "{0} | {1}", "logical_not": "~{0}",
    "where": "{0} ? {1} : {2}",
}
INFINITY = "__builtin_inff()"
REDUCTIONS = {
    "reduce_sum": ("0.f", "{} + {}", "sum"),
    "reduce_max": (f"-{INFINITY}", "v_max({}, {})", "max_of"),
    "reduce_min": (INFINITY, "v_min({}, {})", "min_of"),
}
"""What a reduction starts with, how two values become one, and how a vector becomes a number."""
CHEAP = frozenset({"cast", "add", "sub", "mul", "neg", "maximum", "minimum", "where", "less",
                   "less_equal", "greater", "greater_equal", "equal", "constant"})
CHEAPEST = 4
"""How many cheap operations are done again rather than kept in scratch."""
CHUNK = "64 * W"
"""Columns after which a reduction's parts are added to its total."""
BLOCK = 2048
"""Columns of one share of a loop without reductions."""


@dataclass(frozen=True)
class Reduction:
    """An accumulator: what it starts with, and how `total` takes in its two parts."""

    name: str
    start: str
    total: str


@dataclass
class Phase:
    """Statements before the columns, for every vector of columns, and after them. A reduction
    goes on in the two parts of `part_x`, which do not wait for each other, and after every chunk
    of columns into `x`: one long chain of additions would lose small terms."""

    before: list[str] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoopCode:
    """What the loop template prints."""

    rows: tuple[str, ...]
    columns: str
    blocked: bool
    pointers: tuple[str, ...]
    saved: tuple[str, ...]
    phases: tuple[Phase, ...]


def is_row_scalar(value: Value) -> bool:
    """One number a row: it is held as a vector of equal lanes."""
    return not value.shape or value.shape[-1] == 1


def float_text(number: float) -> str:
    if number != number:
        return '__builtin_nanf("")'
    if number in (float("inf"), float("-inf")):
        return INFINITY if number > 0 else f"-{INFINITY}"
    return f"{float(number)!r}f"


def vector_type(dtype: str) -> str:
    return "F" if dtype in FLOATS else "I"


def expression(node: Node, operands: Sequence[str]) -> str:
    """C++ of one pointwise kernel on vectors."""
    if node.name == "constant":
        return _constant(node.attr["value"], node.attr["dtype"])
    if node.name == "cast":
        return _cast(operands[0], node.inputs[0].dtype, node.out_types[0].dtype)
    if node.name in ("maximum", "minimum") and node.out_types[0].dtype in FLOATS:
        return _extreme(node, operands)
    return EXPRESSIONS[node.name].format(*operands)


def _extreme(node: Node, operands: Sequence[str]) -> str:
    """The larger or smaller; the bare instruction gives its second operand where either is NaN,
    which is right when the first is a number of the graph's."""
    for first, second in ((0, 1), (1, 0)):
        made = node.inputs[first].node
        if made is not None and made.name == "constant":
            return f"raw_{node.name[:3]}({operands[first]}, {operands[second]})"
    return EXPRESSIONS[node.name].format(*operands)


def _constant(number: Size | float, dtype: str) -> str:
    if isinstance(number, int | float):
        return f"splat({float_text(number)})" if dtype in FLOATS else f"splat_i({int(number)})"
    text = str(Poly.of(number))
    return f"splat(float({text}))" if dtype in FLOATS else f"splat_i(int32_t({text}))"


def _cast(x: str, source: str, target: str) -> str:
    if source == target:
        return x
    if target in FLOATS:
        plain = {"i32": f"to_f({x})", "bool": f"({x} ? splat(1.f) : splat(0.f))"}.get(source, x)
        return f"round_to_bf16({plain})" if target == "bf16" else plain
    if target == "i32":
        return f"to_i({x})" if source in FLOATS else f"-{x}"
    return f"{x} != {'splat(0.f)' if source in FLOATS else 'splat_i(0)'}"


class Emitter:
    """Turns a body into phases. `pointer` names what a leaf is loaded from at column i;
    `registers` are leaves that are there already (a matmul's accumulators)."""

    def __init__(self, body: Graph, pointer: Mapping[Value, str],
                 registers: Mapping[Value, str] | None = None) -> None:
        self.body = body
        self.pointer = pointer
        self.ids: dict[Value, str] = {}
        self.uniform: dict[Value, str] = dict(registers or {})
        self.saved: dict[Value, int] = {}
        self.inverses: dict[str, str] = {}
        self.made_in: dict[Value, int] = {}
        self.phase_of = phases_of(body)
        self.phases = [Phase() for _ in range(max(self.phase_of.values(), default=0) + 1)]
        self.rounded = {v for v in body.outputs
                        if v.dtype == "bf16" and v.node and v.node.name != "cast"}
        self.done: list[dict[Value, str]] = [{} for _ in self.phases]

    def run(self, outputs: Sequence[str]) -> tuple[Phase, ...]:
        """The phases; output k is stored at `outputs[k]` (+ column for a whole row)."""
        self._choose_saved()
        stores = list(zip(self.body.outputs, outputs, strict=True))
        for at in range(len(self.phases)):
            self._row_values(at)
            for node in self.body.nodes:
                if node.op.kind == "reduce" and self.phase_of[node.outputs[0]] == at + 1:
                    self._reduce(node, at)
            for value, count in self.saved.items():
                if self.made_in[value] == at:
                    self._line(at, f"store({self._row(value, count)} + i, "
                                   f"{self._get(value, at)}, lanes);")
            for value, target in stores:
                if self.phase_of[value] == at and not is_row_scalar(value):
                    self._line(at, f"store({target} + i, {self._get(value, at)}, lanes);")
        for value, target in stores:
            if is_row_scalar(value):
                text = self._scalar(value, len(self.phases) - 1)
                self.phases[-1].after.append(f"store({target}, {text}, Tail{{1}});")
        return tuple(self.phases)

    def _line(self, at: int, text: str) -> None:
        self.phases[at].columns.append(text)

    def _row(self, value: Value, count: int) -> str:
        return f"row{count}" if value.dtype in FLOATS else f"reinterpret_cast<int32_t*>(row{count})"

    def _choose_saved(self) -> None:
        """Goes through the phases as `run` will, and keeps what a second phase would do again at
        more than a small cost."""
        for at in range(len(self.phases)):
            for node in self.body.nodes:
                if node.op.kind == "reduce" and self.phase_of[node.outputs[0]] == at + 1:
                    self._foresee(node.inputs[0], at)
            for value in self.body.outputs:
                if self.phase_of[value] == at:
                    self._foresee(value, at)

    def _foresee(self, value: Value, at: int) -> None:
        if value.node is None or is_row_scalar(value) or value in self.uniform:
            return
        if self.made_in.setdefault(value, at) == at:
            for operand in value.node.inputs:
                self._foresee(operand, at)
        elif self._cost(value) > CHEAPEST:
            self.saved.setdefault(value, len(self.saved))

    def _cost(self, value: Value) -> int:
        if value.node is None or is_row_scalar(value) or value in self.saved:
            return 0
        if value.node.name not in CHEAP:
            return CHEAPEST + 1
        return 1 + sum(self._cost(v) for v in value.node.inputs)

    def _row_values(self, at: int) -> None:
        """Row scalars that this phase makes from leaves and earlier reductions."""
        for node in self.body.nodes:
            value = node.outputs[0]
            if (is_row_scalar(value) and node.op.kind != "reduce" and self.phase_of[value] == at):
                self._scalar(value, at)

    def _scalar(self, value: Value, at: int) -> str:
        """The name of a row scalar; its code stands before the columns of its phase."""
        if value in self.uniform:
            return self.uniform[value]
        if value.node is None:
            text = f"load_splat({self.pointer[value]})"
        else:
            text = self._rounded(value, expression(
                value.node, [self._scalar(v, at) for v in value.node.inputs]))
        name = f"s{len(self.uniform)}"
        self.uniform[value] = name
        first = self.phases[0 if value.node is None else self.phase_of[value]]
        first.before.append(f"const {vector_type(value.dtype)} {name} = {text};")
        return name

    def _get(self, value: Value, at: int) -> str:
        if value in self.uniform:
            return self.uniform[value]
        if is_row_scalar(value):
            return self._scalar(value, at)
        if value not in self.done[at]:
            text = self._make(value, at)
            name = self.done[at][value] = f"v{self.ids.setdefault(value, str(len(self.ids)))}"
            self._line(at, f"const {vector_type(value.dtype)} {name} = {text};")
        return self.done[at][value]

    def _make(self, value: Value, at: int) -> str:
        if value.node is None:
            return f"load({self.pointer[value]} + i, lanes)"
        if value in self.saved and self.made_in[value] < at:
            return f"load({self._row(value, self.saved[value])} + i, lanes)"
        operands = [self._get(v, at) for v in value.node.inputs]
        if value.node.name == "div" and is_row_scalar(value.node.inputs[1]):
            inverse = self._inverse(operands[1], at)
            return self._rounded(value, f"{operands[0]} * {inverse}")
        return self._rounded(value, expression(value.node, operands))

    def _inverse(self, scalar: str, at: int) -> str:
        """1 / a row scalar, made once a row: a division a vector would cost more than the rest of
        a softmax's last phase."""
        if scalar not in self.inverses:
            self.inverses[scalar] = f"inverse_{scalar}"
            self.phases[at].before.append(f"const F inverse_{scalar} = splat(1.f) / {scalar};")
        return self.inverses[scalar]

    def _rounded(self, value: Value, text: str) -> str:
        return f"round_to_bf16({text})" if value in self.rounded else text

    def _reduce(self, node: Node, at: int) -> None:
        start, combine, finish = REDUCTIONS[node.name]
        value, name = node.outputs[0], f"a{len(self.uniform)}"
        if is_row_scalar(node.inputs[0]):
            self.uniform[value] = self._scalar(node.inputs[0], at)
            return
        phase = self.phases[at]
        phase.before.append(f"F {name} = splat({start});")
        part = f"part_{name}"
        both = combine.format(f"{part}[0]", f"{part}[1]")
        phase.reductions.append(Reduction(name, start, combine.format(name, f"({both})")))
        kept = f"keep({self._get(node.inputs[0], at)}, lanes, {start})"
        self._line(at, f"{part}[side.value] = {combine.format(f'{part}[side.value]', kept)};")
        self.uniform[value] = f"r{name}"
        text = self._rounded(value, f"splat({finish}({name}))")
        phase.after.append(f"const F r{name} = {text};")


def phases_of(body: Graph) -> dict[Value, int]:
    """The number of reductions in a row that have to be over before a value can be made."""
    phase = {v: 0 for v in body.leaves}
    for node in body.nodes:
        latest = max((phase[v] for v in node.inputs), default=0)
        phase |= {v: latest + (node.op.kind == "reduce") for v in node.outputs}
    return phase


def aligned_strides(ref: Ref, rank: int) -> tuple[Poly, ...]:
    """Strides of an operand along the iteration space; 0 where it broadcasts."""
    lead = rank - len(ref.shape)
    own = (ZERO if size == 1 else stride
           for size, stride in zip(ref.shape, ref.strides, strict=True))
    return (ZERO,) * lead + tuple(own)


def loop_code(node: Node, inputs: Sequence[Ref], outputs: Sequence[Ref]) -> LoopCode:
    """The rows, pointers and phases of a loop node."""
    assert node.body is not None
    body, space = node.body, loop_space(node.body)
    refs = [*inputs, *outputs]
    strides = [aligned_strides(r, len(space)) for r in refs]
    reduces = any(n.op.kind == "reduce" for n in body.nodes)
    rows, row_strides = collapsed_rows(space[:-1], [s[:-1] for s in strides])
    columns = Poly.of(space[-1] if space else 1)
    if not reduces and rows and space[-1] != 1:
        merged, merged_strides = collapsed_rows(space, strides)
        if len(merged) == 1 and all(s[-1] in (ONE, ZERO) for s in merged_strides):
            scalar = [is_row_scalar(v) for v in (*body.leaves, *body.outputs)]
            if all((s[-1] == ZERO) == flag
                   for s, flag in zip(merged_strides, scalar, strict=True)):
                rows, columns = (), merged[0]
                row_strides = tuple(() for _ in refs)
    names = [f"x{i}" for i in range(len(inputs))] + [f"y{i}" for i in range(len(outputs))]
    pointers = tuple(pointer_text(name, ref, row, i < len(inputs)) for i, (name, ref, row)
                     in enumerate(zip(names, refs, row_strides, strict=True)))
    emitter = Emitter(body, dict(zip(body.leaves, names, strict=False)))
    phases = emitter.run(names[len(inputs):])
    saved = tuple(f"row{k}" for k in range(len(emitter.saved)))
    blocked = not reduces and not any(is_row_scalar(v) for v in body.outputs)
    return LoopCode(tuple(map(str, rows)), str(columns), blocked, pointers, saved, phases)


def pointer_text(name: str, ref: Ref, strides: Sequence[Poly], constant: bool) -> str:
    """The declaration of a pointer to a row's first element."""
    terms = [address(ref), *(f"i{k} * {s}" for k, s in enumerate(strides) if s != ZERO)]
    const = "const " if constant else ""
    return f"{const}{CTYPES[ref.dtype]}* const {name} = {' + '.join(terms)};"


def address(ref: Ref) -> str:
    """C text of a pointer to the first element."""
    return ref.base if ref.offset == ZERO else f"({ref.base} + {ref.offset})"


def loop_scratch(node: Node, threads: str) -> str:
    """C text of the scratch bytes of a loop, or an empty string."""
    assert node.body is not None
    rows = saved_rows(node)
    values = (v for n in node.body.nodes for v in (*n.inputs, *n.outputs))
    columns = product(max((v.shape for v in values), key=len)[-1:])
    return f"{threads} * {rows} * padded({columns}) * 4" if rows else ""


def saved_rows(node: Node) -> int:
    """How many rows of scratch a loop needs."""
    assert node.body is not None
    emitter = Emitter(node.body, {v: "x" for v in node.body.leaves})
    emitter.run(["y"] * len(node.body.outputs))
    return len(emitter.saved)


@dataclass(frozen=True)
class EpilogueCode:
    """What the matmul template prints: the statements on acc0, acc1 at (row, i)."""

    x: int
    """Number of the operand that the matmuls share."""
    weights: tuple[int, ...]
    rows: tuple[str, ...]
    pointers: tuple[str, ...]
    statements: tuple[str, ...]


def epilogue_code(node: Node, inputs: Sequence[Ref], outputs: Sequence[Ref]) -> EpilogueCode:
    """The epilogue of a matmul_epilogue node, whose body holds matmuls and pointwise kernels."""
    assert node.body is not None
    body = node.body
    matmuls = [n for n in body.nodes if n.name == "matmul_nt"]
    place = {v: i for i, v in enumerate(body.leaves)}
    weights = tuple(place[n.inputs[1]] for n in matmuls)
    registers = {n.outputs[0]: f"acc{i}" for i, n in enumerate(matmuls)}
    read = {v for n in body.nodes if n.name != "matmul_nt" for v in n.inputs if v.node is None}
    operands = [(place[v], v) for v in body.leaves if v in read]
    space = matmuls[0].out_types[0].shape
    refs = [inputs[i] for i, _ in operands] + list(outputs)
    strides = [aligned_strides(r, len(space)) for r in refs]
    rows, row_strides = collapsed_rows(space[:-1], [s[:-1] for s in strides])
    names = [f"x{i}" for i, _ in operands] + [f"y{i}" for i in range(len(outputs))]
    pointers = tuple(pointer_text(name, ref, row, k < len(operands)) for k, (name, ref, row)
                     in enumerate(zip(names, refs, row_strides, strict=True)))
    emitter = Emitter(body, {v: f"x{i}" for i, v in operands}, registers)
    phase = emitter.run(names[len(operands):])[0]
    return EpilogueCode(place[matmuls[0].inputs[0]], weights, tuple(map(str, rows)), pointers,
                        (*phase.before, *phase.columns, *phase.after))


