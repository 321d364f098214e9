"""The Ascend backend: C++ that builds graphs of ATB, for the NPU or for the emulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graphdsl.backend import Capability, Check, Progress, quiet
from graphdsl.compiler import Tools
from graphdsl.errors import Loc
from graphdsl.ir import Node
from graphdsl.manifest import Json
from graphdsl.passes.base import Target
from graphdsl.passes.pipeline import Lowered
from graphdsl.plan import Plan, dims_of, ports_of
from graphdsl.seeing.stages import places_of

from ..cpu.features import best_level, cpu_features
from . import emulation_build
from .atb import Phase, Program
from .cann import abi_of_torch, find_cann, findings, is_named, npu_of_torch, unused_npu
from .checks import check_program
from .compiling import FLAGS, compile_library
from .lowering import program_of
from .render import node_texts, render
from .target import SOCS, check_soc, target

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class AscendPlan(Plan):
    """A plan with the graphs of ATB that do its work."""

    program: Program


@dataclass(frozen=True)
class Ascend:
    """Builds for one kind of SoC."""

    soc: str = SOCS[0]

    @property
    def socs(self) -> tuple[str, ...]:
        return SOCS

    def for_soc(self, soc: str) -> Ascend:
        """The backend for another SoC. Raises GraphError for an unknown one."""
        check_soc(soc)
        return replace(self, soc=soc)

    @property
    def target(self) -> Target:
        return target(self.soc)

    @property
    def features(self) -> tuple[str, ...]:
        """The SoC that graphs were chosen for."""
        return (self.soc,)

    def missing(self, features: Sequence[str]) -> list[str]:
        """Those of `features` that the emulation needs and this CPU lacks."""
        return sorted(set(features) - {*SOCS} - cpu_features())

    def probe(self, environment: Mapping[str, str]) -> Capability:
        """CANN and what belongs to it where the environment names it, else the emulation."""
        if is_named(environment):
            return Capability((*findings(environment, abi_of_torch()), npu_of_torch()),
                              self.features)
        used = Check("emulation", True, "used by builds, for neither ASCEND_HOME_PATH nor "
                     "ATB_HOME_PATH is set")
        npu = unused_npu()
        return Capability((used, npu) if npu else (used,), self.features)

    def supports(self, node: Node) -> str:
        """Nothing: whether a node can run depends on what reads it, so `plan` says so."""
        del node
        return ""

    def plan(self, lowered: Lowered) -> AscendPlan:
        graph, recipes = lowered.graph, lowered.recipes
        program = program_of(graph, self.soc)
        check_program(program, self.soc)
        tiled = {t.name for t in program.ports if t.format == "nz"}
        read = {t.name for t in program.ports if t.host}
        ports = ports_of(graph, frozenset(v for v in graph.params if v.name in tiled),
                         frozenset(v for v in (*graph.inputs, *graph.state) if v.name in read))
        return AscendPlan(graph, recipes, ports, *dims_of(graph), program)

    def summary(self, plan: Plan) -> list[tuple[str, str]]:
        """How many operations of ATB a step of each phase runs."""
        assert isinstance(plan, AscendPlan)
        return [("atb", "; ".join(map(_phase_text, plan.program.phases)))]

    def facts(self, environment: Mapping[str, str]) -> Json:
        """Whether the library has the emulation in it, and the CPU that it then needs, else where
        torch has its tensors."""
        facts: Json = {"emulation": find_cann(environment) is None, "soc": self.soc}
        if not facts["emulation"]:
            return {**facts, "device": "npu"}
        needed = best_level(cpu_features()).features
        return {**facts, "features": [*self.features, *needed]}

    def render(self, plan: Plan, manifest: str) -> dict[str, str]:
        """The sources, the same with CANN and without: the manifest is no part of them."""
        del manifest
        assert isinstance(plan, AscendPlan)
        return render(plan.program, plan.ports, plan.dims)

    def node_texts(self, plan: Plan) -> list[tuple[Node, str]]:
        """Nodes become operations of ATB together; each has those of its line."""
        assert isinstance(plan, AscendPlan)
        texts: dict[Loc, dict[str, None]] = {}
        graphs = dict.fromkeys(g for phase in plan.program.phases for g in phase.graphs)
        for graph in graphs:
            for node, text in zip(graph.nodes, node_texts(graph), strict=True):
                if node.loc:
                    texts.setdefault(node.loc, {})[text] = None
        return [(place.node, text) for place in places_of(plan.graph)
                if place.node.op.kind != "view" and place.node.loc in texts
                for text in texts[place.node.loc]]

    def fingerprint(self, environment: Mapping[str, str]) -> str:
        """What the library depends on besides its sources."""
        cann = find_cann(environment)
        rest = cann.fingerprint() if cann else emulation_build.fingerprint(environment)
        return "\n".join([Tools(environment).version(), *FLAGS, rest])

    def compile(self, build: Path, library: Path, environment: Mapping[str, str], cache: Path,
                progress: Progress = quiet) -> None:
        manifest = (build / MANIFEST).read_text()
        compile_library(build, manifest, library, environment, cache, find_cann(environment),
                        progress)


def _phase_text(phase: Phase) -> str:
    count = sum(len(run.graph.nodes) for run in phase.runs)
    graphs = len(phase.graphs)
    return f"{phase.name} {count} operations in {graphs} graph{'s' * (graphs > 1)}"


BACKEND = Ascend()
