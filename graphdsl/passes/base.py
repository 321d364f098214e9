"""What a pass is and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from graphdsl.errors import Loc
from graphdsl.ir import ORDERS, Graph, Value
from graphdsl.passes.repeat import REPEAT
from graphdsl.passes.rewrite import substitute


@dataclass(frozen=True)
class Fired:
    """A rule that changed the graph, at the user's line; `lines` are those of all that it took."""

    rule: str
    loc: Loc | None
    scope: str = ""
    lines: tuple[Loc | None, ...] = ()

    def __str__(self) -> str:
        place = f" at {self.loc}" if self.loc else ""
        return f"{self.rule}{place}{f' ({self.scope})' if self.scope else ''}"


@dataclass(frozen=True)
class Missed:
    """A rule that nearly matched, why it did not, and the line of the value that is to blame."""

    rule: str
    loc: Loc | None
    scope: str
    reason: str
    at: Loc | None = None
    matched: int = field(default=2, compare=False)
    """Nodes of the pattern that were found. Where it is one, that one alone brought the rule up,
    and the user may have meant something else."""

    def __str__(self) -> str:
        culprit = f" (made at {self.at})" if self.at and self.at != self.loc else ""
        return f"{Fired(self.rule, self.loc, self.scope)}: {self.reason}{culprit}"


@dataclass(frozen=True)
class Result:
    """What a pass returns. `recipes` holds, for params that the pass has made, the graph of
    params that computes them when weights are loaded."""

    graph: Graph
    fired: tuple[Fired, ...] = ()
    missed: tuple[Missed, ...] = ()
    recipes: Mapping[str, Graph] = field(default_factory=dict)


class Pass(Protocol):
    """A frozen dataclass whose fields are the pass's options, each with a default."""

    name: ClassVar[str]

    def run(self, graph: Graph, target: Target) -> Result: ...


class BackendPass(Pass, Protocol):
    """A pass that a Target brings. `rules` are the names under which it reports."""

    rules: ClassVar[tuple[str, ...]]


@dataclass(frozen=True)
class Target:
    """What the passes need to know of a backend."""

    name: str
    takes: frozenset[str] = frozenset()
    """Operations that the backend has whole; the others are expanded to kernels."""
    kv_order: str = "bsnd"
    kv_orders: frozenset[str] = frozenset(ORDERS)
    kv_policies: frozenset[str] = frozenset({"contiguous"})
    kv_policy: str = "contiguous"
    """What caches have where nobody asks for another."""
    kv_block: int = 16
    """Slots of a block of paged caches, where nobody says how many."""
    kv_storages: frozenset[str] = frozenset({""})
    kv_storage: str = ""
    """What caches have where nobody asks for another; "" is that of the dtype."""
    dtypes: frozenset[str] = frozenset({"f32", "bf16"})
    """Floats that a graph may hold."""
    layer_dtypes: frozenset[str] = frozenset({"f32", "bf16"})
    """Those of them that layers are built for: what --dtype takes."""
    layer_dtype: str = "f32"
    """The one where nobody asks for another."""
    model_dtype: str = "bf16"
    """That of a checkpoint's model where nobody asks for another."""
    why_not: tuple[tuple[str, str], ...] = ()
    """Of dtypes that layers are not built for, the reason."""
    splits_vocabulary: bool = True
    """Whether a rank of several has a part of the tables of tokens; else it has them whole."""
    zero_padding: bool = True
    """Attention gives 0 for the rows of padding; else they mean nothing."""
    padded_policies: frozenset[str] = frozenset({"contiguous", "paged", "shift"})
    """Policies of caches into which a step may append fewer tokens for one sequence than for
    another."""
    takes_static: bool = True
    """Attention reads keys that are inputs, with a mask that is one: graphs of fixed length."""
    fuses_loops: bool = True
    """Runs of pointwise and row-reduction kernels become generated loops."""
    epilogue_matmuls: int = 2
    """How many matmuls that share an operand one epilogue may take."""
    fuses_attention: bool = False
    """Pointwise work that follows an attention becomes a part of it."""
    fuses_prologues: bool = False
    """A loop whose rows one matmul alone reads becomes a part of it."""
    passes: tuple[BackendPass, ...] = ()
    """What the backend does to a graph that all others have done their work on."""
    quants: bool = False
    """Linears and embeddings read weights in the formats of graphdsl.quant."""


class CheckFailed(Exception):
    """Something that graphdsl verified about its own work does not hold (exit code 1)."""


def in_bodies(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """`graph` with the bodies of its repeats changed; what they take and return stays."""
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is not REPEAT or node.body is None:
            continue
        body = change(node.body)
        if body is not node.body:
            changed = replace(node, body=body)
            new.update(zip(node.outputs, changed.outputs, strict=True))
    return substitute(graph, new) if new else graph
