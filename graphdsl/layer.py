"""Layers and Models: operations with params and KV state, and how they are traced.

A Layer is an ordinary class: params, caches and inner Layers are attributes set in `__init__`,
`forward` is the maths, `signature` the types of what it takes. Tracing works on a copy of the
Layer whose params are bound to values, so that nothing global is needed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from graphdsl.errors import GraphError, Loc
from graphdsl.ir import (
    BUILT,
    FLOATS,
    Dim,
    Graph,
    Layout,
    Node,
    Size,
    TensorType,
    Value,
)
from graphdsl.layout import LAYOUTS, MOST_SLOTS
from graphdsl.op import Op, user_loc
from graphdsl.signature import Binding, Signature, Term, parse_signature

BATCH = Dim("batch", 1, 1 << 12)
SLOTS = Dim("slots", 1, MOST_SLOTS)
"""The capacity of the KV caches, given when a plan is made."""


def Param(*shape: int, dtype: str = "T") -> Value:
    """A weight of this shape; dtype T is the dtype that the layer is built for."""
    loc = user_loc()
    if not all(isinstance(s, int) and s > 0 for s in shape):
        raise GraphError(f"Param{shape}: sizes of a weight are whole numbers above 0", loc)
    if dtype not in ("T", *BUILT):
        raise GraphError(f"Param{shape}: no dtype {dtype!r}", loc,
                         f"dtypes: {', '.join(BUILT)}; T: the one the layer is built for")
    return Value(TensorType(shape, dtype), kind="param")


@dataclass(frozen=True, eq=False)
class KVCache:
    """The keys and values of all tokens so far: k and v, each [batch, slots, kv_heads, head_dim].

    `append` gives the cache after this step; the old one must not be read any more. A `layout`,
    such as "bnsd" or "bsnd:paged/16" (see Layout), is kept by every pass; without one the backend
    or the user chooses.
    """

    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    layout: str = ""
    k: Value = field(default=cast(Value, None), repr=False)
    v: Value = field(default=cast(Value, None), repr=False)
    _trace: _Trace | None = field(default=None, repr=False)
    _name: str = ""
    _loc: Loc | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self._loc is None:
            object.__setattr__(self, "_loc", user_loc())
        try:
            Layout.parse(self.layout or "bsnd")
        except ValueError:
            raise GraphError(f"KVCache: no layout {self.layout!r}", self._loc,
                             LAYOUTS) from None

    @property
    def chosen_layout(self) -> Layout:
        """What `layout` says, pinned, or one that is still to be chosen."""
        known = Layout.parse(self.layout or "bsnd")
        return replace(known, pinned=bool(self.layout), loc=self._loc)

    def append(self, k: Value, v: Value, positions: Value) -> KVCache:
        """The cache with row (b, t) of k and v [batch, tokens, kv_heads, head_dim] at slot
        positions[b, t]; a position of -1 appends nothing."""
        from graphdsl.ops.kv import kv_append

        if self._trace is None:
            raise GraphError("append on a cache outside of a trace", user_loc(),
                             "use self.kv inside forward")
        new = replace(self, k=kv_append(self.k, k, positions), v=kv_append(self.v, v, positions))
        self._trace.state[f"{self._name}.k"] = new.k
        self._trace.state[f"{self._name}.v"] = new.v
        return new


@dataclass
class _Trace:
    """One trace under way: the new value of every state so far."""

    state: dict[str, Value] = field(default_factory=dict)


class Layer:
    """What is built into one operator. Subclasses set `signature` (in `__init__` if it depends on
    the config), make their params in `__init__(self, config=...)` and write `forward`. A param that
    is set as two attributes is one weight, known by its first path."""

    signature: str = ""
    dims: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """Bounds (lowest, highest) of symbolic sizes; without an entry a size is 1 to 2**20."""
    config: Any = None
    _bound: _Bound | None = None

    if TYPE_CHECKING:
        forward: Callable[..., Any]
        """The maths: values in the order of the signature to the results."""
    else:
        def forward(self, *args: Value) -> Any:
            raise GraphError(f"{type(self).__name__} has no forward", class_loc(type(self)),
                             "write def forward(self, x, ...): and return the results")

    def __call__(self, *args: Value) -> Any:
        """One node whose body is this Layer."""
        if self._bound is None:
            raise GraphError(f"{type(self).__name__} is called outside of a trace", user_loc(),
                             "call layers inside forward, or use graphdsl.trace(layer)")
        return self._bound.call(self, args, user_loc())


class Model(Layer):
    """Embedding, Layers in a plain loop, a final norm and a head."""


@dataclass(frozen=True)
class _Bound:
    """The values that a Layer's leaves stand for in the graph being traced."""

    params: tuple[tuple[str, Value], ...]
    state: tuple[tuple[str, Value], ...]
    path: str
    dtype: str
    trace: _Trace

    def call(self, layer: Layer, args: tuple[Value, ...], loc: Loc) -> Any:
        _check_call(layer, args, self.dtype, loc)
        body = _trace_body(layer, [a.type for a in args], self.dtype)
        current = [self.trace.state.get(f"{self.path}.{name}", v) for name, v in self.state]
        op = Op(type(layer).__name__, type(layer).forward, is_operation=True)
        node = Node(op, (*args, *current, *(v for _, v in self.params)), (),
                    tuple(v.type for v in body.outputs), body, loc, self.path)
        results = node.outputs[: len(body.results)]
        for (name, _), value in zip(self.state, node.outputs[len(results):], strict=True):
            self.trace.state[f"{self.path}.{name}"] = value
        return results[0] if len(results) == 1 else results


def _check_call(layer: Layer, args: tuple[Value, ...], dtype: str, loc: Loc) -> None:
    """What a Layer is called with has to be what its signature declares."""
    name, terms = type(layer).__name__, _signature(layer).inputs
    if len(args) != len(terms):
        raise GraphError(f"{name}: {len(args)} inputs given, {len(terms)} wanted", loc,
                         layer.signature)
    sizes = {d: (getattr(layer.config, d),) for term in terms for d in term.dims
             if isinstance(getattr(layer.config, d, None), int)}
    binding = Binding(dict(sizes), {"T": dtype})
    for term, value in zip(terms, args, strict=True):
        if not isinstance(value, Value):
            raise GraphError(f"{name}: {term.name} is {type(value).__name__}", loc, str(term))
        try:
            binding.bind(term, value.type)
        except GraphError as error:
            raise GraphError(f"{name}: {error.message}", loc, layer.signature) from None
        problem = _layout_problem(term, value)
        if problem:
            reader = class_loc(type(layer))
            raise GraphError(f"{name}: {problem}; {name} ({reader}) takes {term}", loc,
                             f'KVCache(..., layout="{term.layout}")')


def _layout_problem(term: Term, value: Value) -> str:
    """Why a value has not the layout that a term names, or an empty string."""
    layout = value.type.layout
    if term.layout is None:
        return ""
    if layout is None:
        return f"{term.name} is {value.type}, which is no KV cache"
    writer = f"written at {value.loc}" if value.node else f"made at {layout.loc}"
    if not layout.pinned:
        return f"{term.name}, {writer}, is a KV cache whose layout is still to be chosen"
    return "" if layout == term.layout else f"{term.name} is {value.type}, {writer}"


def leaves_of(layer: Any, prefix: str = "") -> Iterator[tuple[str, Value | KVCache]]:
    """Params and caches by their attribute path: `layers.0.attn.wq`."""
    for name, attribute in _attributes(layer):
        path = f"{prefix}{name}"
        if isinstance(attribute, Value) and not attribute.is_param:
            raise GraphError(f"self.{path} is computed in __init__, where params have no value",
                             attribute.loc, "compute it in forward: what depends on params alone "
                             "is computed once, when they are loaded")
        if isinstance(attribute, KVCache | Value):
            yield path, attribute
        else:
            yield from leaves_of(attribute, f"{path}.")


def _attributes(holder: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(holder, Layer):
        items: Any = vars(holder).items()
    elif isinstance(holder, dict):
        items = holder.items()
    else:
        items = enumerate(holder)
    for name, attribute in items:
        if isinstance(attribute, Layer | Value | KVCache | list | tuple | dict):
            yield str(name), attribute


def _bind(holder: Any, values: dict[str, Value], trace: _Trace, dtype: str, prefix: str) -> Any:
    """A copy of a Layer (or list of Layers) whose params and caches are `values`."""
    bound: dict[str, Any] = {}
    for name, attribute in _attributes(holder):
        path = f"{prefix}{name}"
        if isinstance(attribute, KVCache):
            bound[name] = replace(attribute, k=values[f"{path}.k"], v=values[f"{path}.v"],
                                  _trace=trace, _name=path)
        elif isinstance(attribute, Value):
            bound[name] = values[path]
        else:
            bound[name] = _bind(attribute, values, trace, dtype, f"{path}.")
    if isinstance(holder, Layer):
        twin = copy.copy(holder)
        vars(twin).update(bound)
        params, state = _split(leaves_of(holder, prefix), values, len(prefix))
        twin._bound = _Bound(params, state, prefix.rstrip("."), dtype, trace)
        return twin
    if all(bound[name] is attribute for name, attribute in _attributes(holder)):
        return holder
    if isinstance(holder, dict):
        return {k: bound.get(str(k), v) for k, v in holder.items()}
    return type(holder)(bound.get(str(i), v) for i, v in enumerate(holder))


def _split(leaves: Iterator[tuple[str, Value | KVCache]], values: dict[str, Value],
           cut: int) -> tuple[tuple[tuple[str, Value], ...], tuple[tuple[str, Value], ...]]:
    """Params and state values by their path below the Layer, a shared param once."""
    params: list[tuple[str, Value]] = []
    state: list[tuple[str, Value]] = []
    seen: set[Value | KVCache] = set()
    for path, leaf in leaves:
        if isinstance(leaf, KVCache):
            state += [(f"{path}.{part}"[cut:], values[f"{path}.{part}"]) for part in "kv"]
        elif leaf not in seen:
            params.append((path[cut:], values[path]))
        seen.add(leaf)
    return tuple(params), tuple(state)


def _leaf_values(layer: Layer, batch: Size, dtype: str) -> dict[str, Value]:
    """A leaf value for every param and for k and v of every cache, by path."""
    values: dict[str, Value] = {}
    params: dict[Value, Value] = {}
    for path, leaf in leaves_of(layer):
        if isinstance(leaf, KVCache):
            widths = {"k": leaf.head_dim, "v": leaf.value_dim or leaf.head_dim}
            for part, width in widths.items():
                shape = (batch, SLOTS, leaf.kv_heads, width)
                kind = TensorType(shape, dtype, leaf.chosen_layout)
                values[f"{path}.{part}"] = Value(kind, name=f"{path}.{part}", kind="state")
        else:
            own = dtype if leaf.dtype == "T" else leaf.dtype
            new = Value(TensorType(leaf.shape, own), name=path, kind="param")
            values[path] = params.setdefault(leaf, new)
    return values


def _signature(layer: Layer) -> Signature:
    kind = type(layer)
    try:
        signature = parse_signature(layer.signature)
    except GraphError as error:
        raise GraphError(f"{kind.__name__}: {error.message}", class_loc(kind), error.hint) from None
    if not signature.inputs or not signature.outputs:
        raise GraphError(f"{kind.__name__} has no signature", class_loc(kind),
                         'signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"')
    return signature


def class_loc(kind: type) -> Loc | None:
    """The line at which a class is defined."""
    code = getattr(kind.forward, "__code__", None) if issubclass(kind, Layer) else None
    return Loc(code.co_filename, code.co_firstlineno) if code else None


def _input_type(layer: Layer, term: Term, dims: dict[str, Dim], dtype: str) -> TensorType:
    """The type that a term of the signature declares: names are fields of the config, or dims."""
    shape: list[Size] = []
    for name in term.dims:
        fixed = getattr(layer.config, name, None)
        if name.isdigit() or isinstance(fixed, int):
            shape.append(int(name) if name.isdigit() else cast(int, fixed))
        else:
            bounds = type(layer).dims.get(name, (1, 1 << 20))
            known = {"batch": BATCH, "slots": SLOTS}.get(name)
            if name in type(layer).dims or known is None:
                known = Dim(name, *bounds)
            shape.append(dims.setdefault(name, known))
    layout = term.layout and replace(term.layout, pinned=True, loc=class_loc(type(layer)))
    return TensorType(tuple(shape), dtype if term.dtype == "T" else term.dtype, layout)


def trace(layer: Layer | Callable[..., Any] | Graph, dtype: str = "f32") -> Graph:
    """The graph of a Layer, built for activations and weights of `dtype` where T is declared.

    Raises GraphError, with the user's line, for what the layer does wrong.
    """
    if isinstance(layer, Graph):
        return layer
    if not isinstance(layer, Layer):
        raise GraphError(f"{layer!r} is neither a Layer nor a Graph", user_loc(),
                         "pass an instance of a Layer or Model, such as LlamaLayer(Config())")
    if dtype not in FLOATS or dtype not in BUILT:
        raise GraphError(f"no layer of dtype {dtype!r}", hint="dtypes: f32, bf16, f16")
    dims: dict[str, Dim] = {}
    terms = _signature(layer).inputs
    types = [_input_type(layer, term, dims, dtype) for term in terms]
    taken = {path for path, _ in leaves_of(layer)}
    for name in (term.name for term in terms if term.name in taken):
        raise GraphError(f"{type(layer).__name__}: {name} is an input, and self.{name} is another "
                         "value of that name", class_loc(type(layer)), "rename one of them")
    return _trace_body(layer, types, dtype)


def _trace_body(layer: Layer, types: list[TensorType], dtype: str) -> Graph:
    kind = type(layer)
    terms = _signature(layer).inputs
    batch = next((t.shape[i] for term, t in zip(terms, types, strict=True)
                  for i, d in enumerate(term.dims) if d == "batch" and i < len(t.shape)), BATCH)
    values = _leaf_values(layer, batch, dtype)
    tracing = _Trace()
    bound = _bind(layer, values, tracing, dtype, "")
    inputs = tuple(Value(t, name=term.name) for term, t in zip(terms, types, strict=True))
    wanted = len(inspect.signature(bound.forward).parameters)
    if len(inputs) != wanted:
        raise GraphError(f"{kind.__name__}: forward takes {wanted} inputs, the signature "
                         f"declares {len(inputs)}", class_loc(kind), layer.signature)
    results = bound.forward(*inputs)
    outputs = results if isinstance(results, tuple) else (results,)
    _check_outputs(layer, inputs, outputs, dtype)
    state = tuple(v for v in values.values() if v.kind == "state")
    new_state = tuple(tracing.state.get(v.name, v) for v in state)
    params = tuple(dict.fromkeys(v for v in values.values() if v.kind == "param"))
    return Graph(kind.__name__, inputs, params, state, outputs + new_state)


def _check_outputs(layer: Layer, inputs: tuple[Value, ...], outputs: tuple[Any, ...],
                   dtype: str) -> None:
    """What forward returns has to be what the signature promises."""
    kind, signature = type(layer), _signature(layer)
    if len(outputs) != len(signature.outputs):
        raise GraphError(f"{kind.__name__}: forward returns {len(outputs)} values, the signature "
                         f"promises {len(signature.outputs)}", class_loc(kind), layer.signature)
    sizes = {name: size for term, v in zip(signature.inputs, inputs, strict=True)
             for name, size in zip(term.dims, v.shape, strict=False)}
    for term, value in zip(signature.outputs, outputs, strict=True):
        if not isinstance(value, Value):
            raise GraphError(f"{kind.__name__}: forward returns {type(value).__name__} for "
                             f"{term.name}", class_loc(kind), layer.signature)
        dims = {name: s for name, s in sizes.items() if isinstance(s, Dim)}
        wanted = _input_type(layer, term, dims, dtype)
        if (wanted.shape, wanted.dtype) != (value.shape, value.dtype):
            raise GraphError(f"{kind.__name__}: {term.name} is {value.type}, the signature "
                             f"promises {wanted}", value.loc or class_loc(kind), layer.signature)
        problem = _layout_problem(term, value)
        if problem:
            raise GraphError(f"{kind.__name__}: {problem}; the signature ({class_loc(kind)}) "
                             f"promises {term}", value.loc or class_loc(kind),
                             f'KVCache(..., layout="{term.layout}")')
