"""@kernel and @operation: one decorated function is the type rule, the reference and the docs.

A kernel's function is torch code on tensors. An operation's function is made of other ops, and
is traced once per types and attributes; its body is at once its reference and what a backend
that does not know it expands it to.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any, Literal, overload

from graphdsl.errors import GraphError, Loc
from graphdsl.ir import FLOATS, Affine, Attrs, Dim, Graph, Node, Size, TensorType, Value
from graphdsl.lazy import torch, torch_dtype
from graphdsl.signature import Signature, parse_signature

Kind = Literal["pointwise", "reduce", "view", "call"]
Infer = Callable[[Sequence[TensorType], dict[str, Any]], tuple[TensorType, ...]]

_PACKAGE = Path(__file__).parent
_INTERNAL = (str(_PACKAGE), str(_PACKAGE.parent / "backends"))
_MODELS = str(_PACKAGE / "models")


def user_loc() -> Loc:
    """The innermost line outside this package; the layers it ships count as a user's."""
    frame = sys._getframe(1)
    while frame.f_back and (_is_internal(frame.f_code.co_filename) or _is_generated(frame.f_code)):
        frame = frame.f_back
    return Loc(frame.f_code.co_filename, frame.f_lineno)


def _is_generated(code: CodeType) -> bool:
    """Whether this is the __init__ that dataclasses write, which is in no file."""
    return code.co_name == "__init__" and code.co_filename == "<string>"


def _is_internal(file: str) -> bool:
    return file.startswith(_INTERNAL) and not file.startswith(_MODELS)


@dataclass(frozen=True)
class Parameters:
    """What an op's function takes: operands by position, attributes by keyword."""

    operands: tuple[str, ...]
    optional: frozenset[str]
    variadic: bool
    defaults: dict[str, Any]
    required: frozenset[str]
    usage: str
    """How to call it: `(x, weight, *, eps)`."""

    @staticmethod
    def of(function: Callable[..., Any]) -> Parameters:
        operands: list[str] = []
        optional: set[str] = set()
        defaults: dict[str, Any] = {}
        required: set[str] = set()
        variadic = False
        parameters = inspect.signature(function).parameters.values()
        for p in parameters:
            if p.kind is p.VAR_POSITIONAL:
                variadic = True
            elif p.kind is not p.KEYWORD_ONLY:
                operands.append(p.name)
                optional |= {p.name} if p.default is None else set()
            elif p.default is p.empty:
                required.add(p.name)
            else:
                defaults[p.name] = p.default
        plain = [p.replace(annotation=p.empty) for p in parameters]
        return Parameters(tuple(operands), frozenset(optional), variadic, defaults,
                          frozenset(required), str(inspect.Signature(plain)))


@dataclass(frozen=True, eq=False)
class Op:
    """A kernel or an operation: called on values (and numbers) it makes a node."""

    name: str
    function: Callable[..., Any]
    signature: Signature | None = None
    infer: Infer | None = None
    kind: Kind = "call"
    commutative: bool = False
    aliases: tuple[tuple[int, int], ...] = ()
    """(output, input) pairs: the output overwrites the input's memory."""
    is_operation: bool = False
    parameters: Parameters = field(init=False)
    _bodies: dict[Any, Graph] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", Parameters.of(self.function))
        object.__setattr__(self, "__doc__", self.function.__doc__)

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        loc = user_loc()
        operands, attrs = self._bind(args, keywords, loc)
        for operand in operands:
            apply_op = getattr(type(operand), "apply_op", None)
            if apply_op:
                return apply_op(operand, self, operands, attrs)
        node = self.apply(self._values(operands, loc), attrs, loc)
        return node.outputs[0] if len(node.outputs) == 1 else node.outputs

    def apply(self, inputs: tuple[Value, ...], attrs: dict[str, Any], loc: Loc | None,
              scope: str = "", origin: tuple[str, ...] = ()) -> Node:
        """A node of this op. Raises GraphError at `loc` when the types or attributes do not fit."""
        types = [v.type for v in inputs]
        frozen = _freeze(attrs, self.name, loc)
        body = None
        try:
            if self.signature:
                out_types = self.signature.check(types, attrs.get("given"))
            if self.is_operation:
                body = self.trace(types, frozen)
                out_types = tuple(v.type for v in body.outputs)
            elif self.infer:
                out_types = self.infer(types, dict(frozen))
        except GraphError as error:
            if error.loc:
                raise
            hint = error.hint or (str(self.signature) if self.signature else "")
            raise GraphError(f"{self.name}: {error.message}", loc, hint) from None
        return Node(self, inputs, frozen, out_types, body, loc, scope, origin)

    def trace(self, types: Sequence[TensorType], attrs: Attrs) -> Graph:
        """The body for these types: traced once and shared, for graphs are frozen."""
        pins = tuple([t.layout is not None and t.layout.pinned for t in types])
        key = (tuple(types), pins, attrs)
        if key not in self._bodies:
            keywords = dict(attrs)
            names = self.present(len(types), keywords)
            keywords.pop("given", None)
            leaves = tuple(Value(t, name=n) for t, n in zip(types, names, strict=True))
            by_name = dict(zip(names, leaves, strict=True))
            if self.parameters.variadic:
                result = self.function(*leaves, **keywords)
            else:
                operands = [by_name.get(n) for n in self.parameters.operands]
                result = self.function(*operands, **keywords)
            outputs = result if isinstance(result, tuple) else (result,)
            self._bodies[key] = Graph(self.name, leaves, (), (), self._checked(outputs, types,
                                                                               attrs))
        return self._bodies[key]

    def present(self, count: int, attrs: dict[str, Any]) -> tuple[str, ...]:
        """The names of a node's operands: the optional ones may be absent."""
        p = self.parameters
        if p.variadic:
            rest = range(count - len(p.operands))
            return (*p.operands, *(f"x{i}" for i in rest))
        if len(p.optional) > 1:
            return tuple(n for n in p.operands if n not in p.optional or n in attrs["given"])
        return p.operands[:count]

    def _checked(self, outputs: tuple[Any, ...], types: Sequence[TensorType],
                 attrs: Attrs) -> tuple[Value, ...]:
        """What an operation's function returns, if it is what its signature promises."""
        code = self.function.__code__
        loc = Loc(code.co_filename, code.co_firstlineno)
        for output in outputs:
            if not isinstance(output, Value):
                raise GraphError(f"{self.name} returns {type(output).__name__}", loc,
                                 "an operation returns values, made of its operands by ops")
        if self.signature and self.signature.outputs:
            promised = self.signature.check(types, dict(attrs).get("given"))
            found = [(v.shape, v.dtype) for v in outputs]
            if found != [(t.shape, t.dtype) for t in promised]:
                raise GraphError(f"{self.name} returns {', '.join(str(v.type) for v in outputs)}; "
                                 f"its signature promises {', '.join(map(str, promised))}", loc,
                                 str(self.signature))
        return outputs

    def _bind(self, args: tuple[Any, ...], keywords: dict[str, Any],
              loc: Loc) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Operands in their order, absent ones left out, and the attributes with defaults."""
        p = self.parameters
        usage = f"{self.name}{p.usage}"
        if p.variadic:
            operands: tuple[Any, ...] = args
        else:
            if len(args) > len(p.operands):
                names = ", ".join((*sorted(p.required), *p.defaults))
                rest = f"; by name: {names}" if names else ""
                raise GraphError(f"{self.name}: {len(args)} operands given, at most "
                                 f"{len(p.operands)} taken{rest}", loc, usage)
            named = dict(zip(p.operands, args, strict=False))
            named |= {n: keywords.pop(n) for n in p.operands if n in keywords}
            given = [n for n in p.operands if named.get(n) is not None]
            missing = [n for n in p.operands if n not in given and n not in p.optional]
            if missing:
                raise GraphError(f"{self.name}: operand {missing[0]} is missing", loc, usage)
            operands = tuple(named[n] for n in given)
            if len(p.optional) > 1:
                keywords["given"] = tuple(n for n in given if n in p.optional)
        unknown = keywords.keys() - p.defaults.keys() - p.required - {"given"}
        absent = p.required - keywords.keys()
        if unknown or absent:
            what = (f"no attribute {min(unknown)}" if unknown
                    else f"attribute {min(absent)} is missing")
            raise GraphError(f"{self.name}: {what}", loc, usage)
        return operands, p.defaults | keywords

    def _values(self, operands: tuple[Any, ...], loc: Loc) -> tuple[Value, ...]:
        """Numbers become constants of the dtype that the other operands have."""
        dtype = next((v.dtype for v in operands if isinstance(v, Value) and v.dtype != "bool"),
                     "f32")
        return tuple(self._value(x, dtype, loc) for x in operands)

    def _value(self, x: Any, dtype: str, loc: Loc) -> Value:
        if isinstance(x, Value):
            return x
        if isinstance(x, int | float | Dim | Affine) and not isinstance(x, bool):
            if isinstance(x, float) and dtype not in FLOATS:
                raise GraphError(f"{self.name}: the number {x} meets a value of {dtype}", loc,
                                 "cast the value to a floating dtype first")
            return constant_of(x, dtype, loc)
        hint = ("operands are given one by one" if isinstance(x, list | tuple) else
                "operands are values made from the layer's inputs and params, or numbers")
        raise GraphError(f"{self.name}: an operand is {type(x).__name__} {str(x)[:40]!r}", loc,
                         hint)


def _freeze(attrs: dict[str, Any], name: str, loc: Loc | None) -> Attrs:
    frozen = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in attrs.items()))
    try:
        hash(frozen)
        found = [k for k, v in frozen if isinstance(v, Value)]
    except TypeError:
        found = [k for k, v in frozen if not isinstance(v, Hashable)] or [frozen[0][0]]
    if found:
        raise GraphError(f"{name}: the attribute {found[0]} is a {type(attrs[found[0]]).__name__}",
                         loc, "attributes are numbers, strings and tuples of them")
    return frozen


def no_truth(value: Value) -> bool:
    """Refuses `if x > 0:` in DSL code, which would silently be decided while tracing."""
    raise GraphError(f"a {value.type} is used as a condition, but has no value while the graph is "
                     "made", user_loc(), "choose between elements with where(condition, a, b); "
                     "test for a missing operand with `x is None`")


def _op_signature(text: str) -> Signature | None:
    """The signature of an op, whose results have only sizes that its operands have."""
    if not text:
        return None
    try:
        signature = parse_signature(text)
    except GraphError as error:
        raise GraphError(error.message, user_loc(), error.hint) from None
    laid_out = [t for t in (*signature.inputs, *signature.outputs) if t.layout]
    if laid_out:
        raise GraphError(f"signature: an op takes caches of any layout, not {laid_out[0]}",
                         user_loc(), "the signatures of Layers name layouts")
    known = {d for term in signature.inputs for d in term.dims}
    unknown = [d for term in signature.outputs for d in term.dims
               if d not in known and not d.isdigit()]
    if unknown:
        raise GraphError(f"signature: the size {unknown[0]} of a result is not one of an operand",
                         user_loc(), text)
    return signature


def kernel(signature: str = "", *, infer: Infer | None = None, kind: Kind = "call",
           commutative: bool = False, aliases: tuple[tuple[int, int], ...] = (),
           ) -> Callable[[Callable[..., Any]], Op]:
    """A primitive. `signature` ("x[*b, k], w[n, k] -> y[*b, n]") or `infer` is its type rule; the
    function computes it on torch tensors and is the reference."""
    parsed = _op_signature(signature)

    def make(function: Callable[..., Any]) -> Op:
        return Op(function.__name__, function, parsed, infer, kind, commutative, aliases)
    return make


@overload
def operation(signature: Callable[..., Any]) -> Op: ...


@overload
def operation(signature: str = "", *, aliases: tuple[tuple[int, int], ...] = (),
              ) -> Callable[[Callable[..., Any]], Op]: ...


def operation(signature: str | Callable[..., Any] = "", *,
              aliases: tuple[tuple[int, int], ...] = (),
              ) -> Op | Callable[[Callable[..., Any]], Op]:
    """An op whose function is made of other ops: `@operation` or `@operation("x[*b] -> y[*b]")`.
    `aliases` matter to a backend that takes it whole."""
    if callable(signature):
        return Op(signature.__name__, signature, is_operation=True)
    parsed = _op_signature(signature)

    def make(function: Callable[..., Any]) -> Op:
        return Op(function.__name__, function, parsed, aliases=aliases, is_operation=True)
    return make


def _constant_type(types: Sequence[TensorType], attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    return (TensorType((), attrs["dtype"]),)


@kernel(infer=_constant_type, kind="pointwise")
def constant(*, value: Size | float, dtype: str) -> Any:
    """A number, or a symbolic size as a number, with no dims."""
    return torch.tensor(value, dtype=torch_dtype(dtype))


def constant_of(value: Size | float, dtype: str, loc: Loc | None = None) -> Value:
    """`value` as a value of no dims."""
    if dtype in FLOATS and isinstance(value, int):
        value = float(value)
    return constant.apply((), {"value": value, "dtype": dtype}, loc).outputs[0]
