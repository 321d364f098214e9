"""Nodes keep their numbers from stage to stage; what the page says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from graphdsl.backend import find_backend
from graphdsl.call_plan import make_plan
from graphdsl.ir import Dim, Graph, TensorType
from graphdsl.manifest import Identity, manifest_of, manifest_text
from graphdsl.passes.memory import ordered
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.printer import node_text, text
from graphdsl.seeing.code import generated_code
from graphdsl.seeing.facts import LISTED, Reporter, byte_text
from graphdsl.seeing.stages import Stage, places_of, stages_of, value_names
from graphdsl.source import load_source

EXAMPLES = Path(__file__).parents[2] / "examples"
CPU = find_backend("cpu")


@dataclass(frozen=True)
class Seen:
    """An example with all its stages."""

    stages: list[Stage]
    lowered: Lowered

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)


def seen(name: str) -> Seen:
    graph = load_source(EXAMPLES / f"{name}.py").graph
    graphs: list[tuple[str, Graph]] = [("trace", graph)]
    lowered = run_pipeline(graph, CPU.target, observe=lambda n, g: graphs.append((n, g)))
    return Seen(stages_of(graphs), lowered)


@pytest.fixture(scope="module", params=["llama_layer", "llama"])
def example(request: pytest.FixtureRequest) -> Seen:
    return seen(request.param)


@pytest.fixture(scope="module")
def layer() -> Seen:
    return seen("llama_layer")


def test_places_follow_the_text(example: Seen) -> None:
    for stage in example.stages:
        lines = [line.strip() for line in text(stage.graph).splitlines()]
        nodes = [line for line in lines if " = " in line]
        assert [node_text(p.node, stage.names) for p in stage.places] == nodes


def test_numbers_are_distinct_and_stay(example: Seen) -> None:
    for before, stage in zip(example.stages, example.stages[1:], strict=False):
        assert len(set(stage.numbers.values())) == len(stage.places)
        if not stage.changed:
            assert stage.numbers is before.numbers
            continue
        old = {before.numbers[p]: p for p in before.places}
        for place in stage.places:
            known = old.get(stage.numbers[place])
            assert known is None or known.node.name == place.node.name


def test_a_fused_kernel_is_still_itself(layer: Seen) -> None:
    before, after = layer.stage("epilogues"), layer.stage("loops")
    reads, now = value_names(before), value_names(after)
    homes = {before.numbers[p]: p for p in before.places}
    moved = [p for p in after.places if p.parent and p.parent.node.name == "loop"
             and p.node.scope.startswith("rms_norm()") and p.node.name != "constant"]
    assert len(moved) >= 7
    for place in moved:
        old = homes[after.numbers[place]]
        assert old.parent is None
        assert reads[old] == now[place]
    loops = [after.numbers[p] for p in after.places if p.node.name == "loop"]
    assert not set(loops) & set(homes)


def test_readers_of_a_merged_constant_read_the_same() -> None:
    found = seen("llama_layer")
    expand, last = found.stage("expand"), found.stages[-1]
    numbers = {expand.numbers[p]: value_names(expand)[p] for p in expand.places}
    for place in last.places:
        if place.node.name == "rsqrt":
            assert value_names(last)[place] == numbers[last.numbers[place]]


def test_code_is_what_stands_in_the_sources(example: Seen) -> None:
    last, lowered = example.stages[-1], example.lowered
    code = generated_code(last, lowered, CPU)
    plan = make_plan(lowered.graph, lowered.recipes, CPU, ordered)
    identity = Identity("cpu", "f32", CPU.features)
    manifest = manifest_text(manifest_of(plan, example.stages[0].graph, identity))
    sources = "\n".join(CPU.render(plan, manifest).values())
    calls = [p for p in places_of(lowered.graph) if p.node.op.kind != "view"
             and (p.parent is None or p.parent.node.name == "repeat")]
    missing = [p.node.name for p in calls if p.node not in {q.node for q in code}]
    assert set(missing) <= {"constant", "concat"}
    for texts in code.values():
        for part in (part for each in texts for part in each.split("\n// ")):
            body = part.partition("equal calls share:\n")[2] or part
            assert body.rstrip("\n") in sources


def test_facts(layer: Seen) -> None:
    last = layer.stages[-1]
    reporter = Reporter()
    facts = reporter.facts(last, generated_code(last, layer.lowered, CPU))
    epilogue = next(f for f in facts if f["op"] == "matmul_epilogue")
    assert epilogue["line"].startswith("llama_layer.py:")
    line = int(epilogue["line"].partition(":")[2])
    lines = (EXAMPLES / "llama_layer.py").read_text().splitlines()
    assert epilogue["source"] == lines[line - 1].strip()
    assert "matmul(" in reporter.texts.all[epilogue["code"][0]]
    for _, kind, row in epilogue["reads"]:
        assert kind in reporter.bytes
        assert any(made[1] == kind for made in facts[row]["makes"])
    inner = next(f for f in facts if f.get("inside") and f["op"] == "matmul_nt")
    assert facts[inner["inside"][0]]["op"] in ("matmul_epilogue", "matmul_prologue")
    trace = Reporter()
    first = next(f for f in trace.facts(layer.stages[0], {}) if f["op"] == "rms_norm")
    assert "rsqrt" in trace.texts.all[first["body"][0]]


def test_a_repeat_lists_some_of_its_operands() -> None:
    last = seen("llama").stages[-1]
    repeat = next(f for f in Reporter().facts(last, {}) if f["op"] == "repeat")
    node = next(p.node for p in last.places if p.node.name == "repeat")
    assert len(repeat["reads"]) == LISTED
    assert repeat["more"] == len(node.inputs) - LISTED


@pytest.mark.parametrize(("shape", "dtype", "wanted"), [
    ((Dim("batch"), Dim("tokens"), 4096), "f32", "16384*batch*tokens"),
    ((Dim("past") + Dim("tokens"), 2), "bf16", "4*tokens + 4*past"),
    ((Dim("n"),), "bool", "n"),
    ((4096, 4096), "f32", "67108864 (64 MiB)"),
    ((3,), "i32", "12"),
    ((), "f32", "4"),
])
def test_bytes(shape: tuple[int, ...], dtype: str, wanted: str) -> None:
    assert byte_text(TensorType(shape, dtype)) == wanted
