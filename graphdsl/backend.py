"""What a backend is, and how it is found.

A backend is a folder (or another package) behind the entry-point group `graphdsl.backends`; the
passes see only its Target, never the backend itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from graphdsl.errors import GraphError
from graphdsl.ir import Node
from graphdsl.manifest import Json
from graphdsl.plan import Plan

if TYPE_CHECKING:
    from graphdsl.passes.base import Target
    from graphdsl.passes.pipeline import Lowered

Progress = Callable[[str, str], None]
"""Told a stage, and what to say of it."""

GROUP = "graphdsl.backends"
"""The entry points by which a package brings a backend."""


def quiet(stage: str, summary: str) -> None:
    """Progress that nobody watches."""


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


class Backend(Protocol):
    """Plan, render and compile a lowered graph."""

    @property
    def target(self) -> Target: ...

    @property
    def socs(self) -> tuple[str, ...]:
        """The chips to choose from, the usual one first; none where there is no choice."""

    def for_soc(self, soc: str) -> Backend:
        """The same backend for another chip of `socs`. Raises GraphError for one that is not."""

    @property
    def features(self) -> tuple[str, ...]:
        """What a machine must have to run what is built: part of the manifest."""

    def missing(self, features: Sequence[str]) -> list[str]:
        """Those of `features` that this machine lacks."""

    def probe(self, environment: Mapping[str, str]) -> Capability:
        """What is installed. `environment` holds CXX and its like."""

    def supports(self, node: Node) -> str:
        """Why this backend cannot run a lowered node, or an empty string."""

    def plan(self, lowered: Lowered) -> Plan:
        """What is rendered for a lowered graph. Raises GraphError, at the user's line, for what
        the backend cannot run."""

    def summary(self, plan: Plan) -> Sequence[tuple[str, str]]:
        """What a build says of a plan, by stage."""

    def facts(self, environment: Mapping[str, str]) -> Json:
        """What the manifest says besides, and what it says otherwise; "device" is that of torch on
        which the library has its tensors, the CPU unless given. Raises ToolError where the
        environment names tools that are not there."""

    def render(self, plan: Plan, manifest: str) -> dict[str, str]:
        """The sources, by path below the build's folder."""

    def node_texts(self, plan: Plan) -> Sequence[tuple[Node, str]]:
        """The text that is generated for nodes of the plan's graph: its lines as they stand in the
        sources, and those of a function that several share."""

    def fingerprint(self, environment: Mapping[str, str]) -> str:
        """What the library depends on besides its sources: tools and flags."""

    def compile(self, build: Path, library: Path, environment: Mapping[str, str], cache: Path,
                progress: Progress) -> None:
        """The library from what was rendered into `build`: src/ and the manifest. What several
        builds share is kept in `cache`; `progress` is told when that is made. Raises ToolError
        with the command and output."""


def backend_names() -> list[str]:
    """The backends that are installed."""
    return sorted({e.name for e in entry_points(group=GROUP)})


def find_backend(name: str, soc: str = "") -> Backend:
    """The backend of this name, for the chip of that name if one is given. Raises GraphError for
    an unknown one."""
    found = {e.name: e for e in entry_points(group=GROUP)}
    if name not in found:
        raise GraphError(f"no backend {name}", hint=f"backends: {', '.join(sorted(found))}")
    module, _, attribute = found[name].value.partition(":")
    backend: Backend = getattr(import_module(module), attribute)
    if soc and not backend.socs:
        raise GraphError(f"--soc {soc}: the {name} backend has no SoCs to choose from",
                         hint="leave it out")
    return backend.for_soc(soc) if soc else backend
