"""What a backend is, and how it is found.

A backend is a folder (or another package) behind the entry-point group `graphdsl.backends`; the
passes see only its Target, never the backend itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from graphdsl.errors import GraphError
from graphdsl.ir import Node
from graphdsl.plan import Lowering, Plan


@dataclass(frozen=True)
class Target:
    """What the passes need to know of a backend."""

    name: str
    takes: frozenset[str] = frozenset()
    """Operations that the backend has whole; the others are expanded to kernels."""
    kv_order: str = "bsnd"
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
    why_not: tuple[tuple[str, str], ...] = ()
    """Of dtypes that layers are not built for, the reason."""
    fuses_loops: bool = True
    """Runs of pointwise and row-reduction kernels become generated loops."""
    epilogue_matmuls: int = 2
    """How many matmuls that share an operand one epilogue may take."""
    fuses_attention: bool = False
    """Pointwise work that follows an attention becomes a part of it."""
    fuses_prologues: bool = False
    """A loop whose rows one matmul alone reads becomes a part of it."""


@dataclass(frozen=True)
class Check:
    """One finding of `probe`: a tool, a feature, a library, and whether it is there."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Capability:
    """What this machine offers a backend."""

    checks: tuple[Check, ...]
    features: tuple[str, ...] = ()
    """What the generated code depends on (CPU features, architectures): part of the cache key."""

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


class Backend(Lowering, Protocol):
    """Lower, render and compile a plan."""

    @property
    def target(self) -> Target: ...

    @property
    def features(self) -> tuple[str, ...]:
        """What a machine must have to run what is built: part of the manifest."""

    def missing(self, features: Sequence[str]) -> list[str]:
        """Those of `features` that this machine lacks."""

    def probe(self, environment: Mapping[str, str]) -> Capability:
        """What is installed. `environment` holds CXX and its like."""

    def supports(self, node: Node) -> str:
        """Why this backend cannot run a lowered node, or an empty string."""

    def size(self, text: str, dims: Mapping[str, int], threads: int = 1) -> int:
        """The number that C text of a plan's size stands for, for these dims."""

    def render(self, plan: Plan, manifest: str) -> dict[str, str]:
        """The sources, by path below the build's folder."""

    def call_texts(self, plan: Plan) -> Sequence[Sequence[str]]:
        """The generated text of every call, body by body, in the order of the plan: its lines as
        they stand in the sources, and those of the function that it shares with equal calls."""

    def fingerprint(self, environment: Mapping[str, str]) -> str:
        """What the library depends on besides its sources: tools and flags."""

    def compile(self, sources: Path, library: Path, environment: Mapping[str, str]) -> None:
        """The library from the rendered sources. Raises ToolError with the command and output."""


def find_backend(name: str) -> Backend:
    """The backend of this name. Raises GraphError for an unknown one."""
    found = {e.name: e for e in entry_points(group="graphdsl.backends")}
    if name not in found:
        raise GraphError(f"no backend {name}", hint=f"backends: {', '.join(sorted(found))}")
    module, _, attribute = found[name].value.partition(":")
    backend: Backend = getattr(import_module(module), attribute)
    return backend
