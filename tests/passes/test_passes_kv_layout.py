"""KV layouts: every order, policy and storage, in the types, the operands and the numbers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cachecase
import pytest
from cachecase import (
    SMALL,
    Attends,
    AttendsTo,
    Doubles,
    Gives,
    Present,
    Reader,
    Reads,
    Shares,
    Stack,
)
from passcase import CPU, WHOLE, assert_same, graph_of, leaf, line_of
from random_layers import random_layer, random_model

from graphdsl.ir import Dim, Graph, Layout, Node, TensorType, Value
from graphdsl.layer import BATCH, SLOTS, trace
from graphdsl.layout import ORDERS, PAGES, POLICIES, TABLE
from graphdsl.models.llama import Llama, LlamaLayer
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.passes.base import Fired
from graphdsl.passes.caches import CACHES
from graphdsl.passes.kv_layout import KVLayout
from graphdsl.passes.pipeline import Lowered, run_pass, run_pipeline
from graphdsl.passes.roll import Roll
from graphdsl.passes.samples import samples
from graphdsl.passes.verify import problem_of
from graphdsl.printer import text

Golden = Callable[[str, str], None]
ALL = list(itertools.product(ORDERS, POLICIES, ("", "int8")))
TAKING = replace(WHOLE, kv_policies=CPU.kv_policies, kv_storages=CPU.kv_storages)
TOKENS = Dim("tokens")
CACHES_HERE = cachecase.__file__


def options_of(order: str, policy: str, storage: str) -> dict[str, dict[str, str]]:
    return {"kv_layout": {"order": order, "policy": policy, "storage": storage}}


def layout_of(order: str, policy: str, storage: str) -> Layout:
    return Layout(order, policy, CPU.kv_block if policy == "paged" else 0, storage)


def all_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph and of all bodies in it."""
    for node in graph.nodes:
        yield node
        if node.body is not None:
            yield from all_nodes(node.body)


def caches_of(graph: Graph) -> list[Value]:
    """Every value whose type has a layout, in bodies too."""
    values = {v: None for v in (*graph.leaves, *graph.outputs)}
    for node in all_nodes(graph):
        bodies = node.body.leaves if node.body is not None else ()
        values |= dict.fromkeys((*node.inputs, *node.outputs, *bodies))
    return [v for v in values if v.type.layout]


def relayouts(lowered: Lowered) -> list[Fired]:
    return [f for report in lowered.report for f in report.fired if f.rule == "Relayout"]


@pytest.mark.parametrize("combination", ALL, ids=":".join)
@pytest.mark.parametrize("layer", [LlamaLayer(SMALL), Llama(SMALL)], ids=["layer", "model"])
def test_every_layout(layer: Any, combination: tuple[str, str, str]) -> None:
    graph = trace(layer)
    lowered = run_pipeline(graph, CPU, options_of(*combination), verify=True)
    assert_same(graph, lowered, seed=3)
    assert {v.type.layout for v in caches_of(lowered.graph)} == {layout_of(*combination)}
    assert not relayouts(lowered)
    tables = [v for v in lowered.graph.state if v.name == TABLE]
    assert len(tables) == (combination[1] == "paged")
    for node in all_nodes(lowered.graph):
        if node.name in CACHES:
            names = node.op.present(len(node.inputs), node.attr)
            assert ("table" in names) == bool(tables), node.name


@pytest.mark.parametrize("combination", ALL, ids=":".join)
@pytest.mark.parametrize("target", [CPU, TAKING], ids=lambda t: t.name)
def test_again(target: Any, combination: tuple[str, str, str]) -> None:
    """A graph that has its layouts stays as it is, and the same comes out every time."""
    options = options_of(*combination)
    lowered = run_pipeline(trace(Llama(SMALL)), target, options)
    again = run_pipeline(lowered.graph, target, options)
    assert text(again.graph) == text(lowered.graph)
    assert text(run_pipeline(trace(Llama(SMALL)), target, options).graph) == text(lowered.graph)
    each = KVLayout(combination[0], combination[1], None, combination[2])
    assert each.run(lowered.graph, target).graph is lowered.graph
    assert not each.run(lowered.graph, target).fired


@pytest.mark.parametrize("policy", POLICIES)
def test_layers_that_are_nodes_still(policy: str) -> None:
    """The pass needs none of those before it; the block table goes into Layers and through them
    into a repeat."""
    graph = trace(Llama(SMALL))
    lowered = run_pass(KVLayout("sbnd", policy), Lowered(graph), CPU)
    assert_same(graph, lowered)
    rolled = run_pass(Roll(), lowered, CPU)
    assert "repeat" in [n.name for n in rolled.graph.nodes]
    assert_same(graph, rolled)


def test_the_block_table() -> None:
    lowered = run_pipeline(trace(Llama(SMALL)), CPU, {"kv_layout": {"policy": "paged",
                                                                  "block": "8"}})
    table = lowered.graph.state[-1]
    assert table.type == TensorType((BATCH, PAGES), "i32")
    assert (table.name, table.kind) == (TABLE, "state")
    assert lowered.graph.new_state[-1] is table
    assert {v.type.layout for v in caches_of(lowered.graph)} == {Layout("bnsd", "paged", 8)}
    repeat = next(n for n in lowered.graph.nodes if n.name == "repeat")
    assert repeat.inputs.count(table) == 1
    assert repeat.body is not None
    assert [v.type for v in repeat.body.inputs].count(table.type) == 1
    assert problem_of(lowered.graph) == ""
    assert set(samples(lowered.graph, 0).state) == {v.name for v in lowered.graph.state}


def test_a_block_table_that_is_given() -> None:
    """Who hands a table to all that is paged gets no other."""
    pool = TensorType((BATCH, SLOTS, 2, 4), "f32", Layout("bsnd", "paged", 4, pinned=True))
    kv = Value(pool, name="kv", kind="state")
    x, positions = leaf("x", BATCH, TOKENS, 2, 4), leaf("positions", BATCH, TOKENS, dtype="i32")
    table = leaf("pages", BATCH, PAGES, dtype="i32")
    new = kv_append(kv, x, positions, table)
    graph = graph_of(attention(x, new, new, positions, table=table), new, state=(kv,))
    lowered = run_pipeline(graph, CPU, verify=True)
    assert lowered.graph.state == (kv,)
    assert [n.inputs[-1] for n in lowered.graph.nodes] == [table, table]


def test_what_is_not_asked_for_is_the_backends() -> None:
    for options, layout in (({}, "bnsd"), ({"order": "sbnd"}, "sbnd"),
                            ({"policy": "shift"}, "bnsd:shift"),
                            ({"storage": "int8"}, "bnsd:int8"),
                            ({"policy": "paged"}, "bnsd:paged/16")):
        lowered = run_pipeline(trace(Attends()), CPU, {"kv_layout": options})
        assert {str(v.type.layout) for v in caches_of(lowered.graph)} == {layout}
    assert run_pipeline(trace(Attends()), WHOLE).graph.state[0].type.layout == Layout("bsnd")


@pytest.mark.parametrize("layout", ["bsnd", "sbnd:shift", "bsnd:paged/4", "bsnd:paged/4:int8"])
def test_a_pinned_layout_stays(layout: str) -> None:
    graph = trace(Attends(layout))
    lowered = run_pipeline(graph, CPU, verify=True)
    assert {str(v.type.layout) for v in caches_of(lowered.graph)} == {layout}
    same = {"order": layout[:4]} | ({"storage": "int8"} if "int8" in layout else {})
    assert text(run_pipeline(graph, CPU, {"kv_layout": same}).graph) == text(lowered.graph)


def test_options_are_for_what_is_not_pinned() -> None:
    """The block of a pinned cache is that of the others, where nobody says another."""
    layers = Llama(replace(SMALL, layers=2))
    layers.layers[1].kv = replace(layers.layers[1].kv, layout="bnsd:paged/4")
    lowered = run_pipeline(trace(layers), CPU, {"kv_layout": {"policy": "paged"}}, verify=True)
    assert {str(v.type.layout) for v in caches_of(lowered.graph)} == {"bnsd:paged/4"}
    mixed = run_pipeline(trace(layers), CPU, verify=True)
    assert [str(v.type.layout) for v in mixed.graph.state] == [
        "bnsd", "bnsd", "bnsd:paged/4", "bnsd:paged/4", "None"]


def test_turns_of_a_repeat_share_a_pin() -> None:
    """bsnd is what caches have before they are laid out, so these Layers are equal."""
    layers = Llama(SMALL)
    layers.layers[1].kv = replace(layers.layers[1].kv, layout="bsnd")
    lowered = run_pipeline(trace(layers), CPU, verify=True)
    assert "repeat" in [n.name for n in lowered.graph.nodes]
    assert {v.type.layout for v in caches_of(lowered.graph)} == {Layout("bsnd")}


@pytest.mark.parametrize("target", [CPU, TAKING], ids=lambda t: t.name)
def test_relayouts(target: Any) -> None:
    """Who reads rows gets a copy where they do not lie in strides: one, reported with its bytes."""
    graph = trace(Doubles())
    for combination in ALL:
        _, policy, storage = combination
        if policy == "shift":
            continue
        lowered = run_pipeline(graph, target, options_of(*combination), verify=True)
        found = relayouts(lowered)
        assert len(found) == (policy == "paged" or storage != "")
        for fired in found:
            assert fired.loc == line_of("rows", CACHES_HERE)
            layout = layout_of(*combination)
            assert fired.scope == f"32*batch*slots bytes from {layout}"
        attends = next(n for n in all_nodes(lowered.graph) if n.name == "attention")
        assert attends.inputs[1].type.layout == layout_of(*combination)


def test_a_cache_as_a_result() -> None:
    graph = trace(Present())
    for combination in ALL:
        if combination[1] == "shift":
            continue
        lowered = run_pipeline(graph, CPU, options_of(*combination), verify=True)
        assert [f.loc for f in relayouts(lowered)] == [line_of("present", CACHES_HERE)]
        assert relayouts(lowered)[0].scope.startswith("result, 32*batch*slots bytes from ")
        assert lowered.graph.results[0].type == TensorType(graph.results[0].shape, "f32")


def test_a_relayout_in_a_repeat() -> None:
    """A Model whose Layers read rows: the copy is in the body, with its block table."""
    graph = trace(Stack())
    lowered = run_pipeline(graph, CPU, {"kv_layout": {"policy": "paged"}}, verify=True)
    body = next(n.body for n in lowered.graph.nodes if n.name == "repeat")
    assert body is not None
    assert [n.name for n in body.nodes].count("relayout") == 1
    assert [(f.loc, f.scope) for f in relayouts(lowered)] == [
        (line_of("first row", CACHES_HERE), "layers.*, 32*batch*slots bytes from bnsd:paged/16")]


def test_layers_hand_caches_on() -> None:
    graph = trace(Reads("bnsd:paged/4"))
    lowered = run_pipeline(graph, CPU, verify=True)
    assert {str(v.type.layout) for v in caches_of(lowered.graph)} == {"bnsd:paged/4"}
    assert not relayouts(lowered)
    assert trace(Gives("sbnd")).results[1].type.layout == Layout("sbnd")


@pytest.mark.parametrize("combination", ALL, ids=":".join)
def test_layers_that_share_a_cache(combination: tuple[str, str, str]) -> None:
    """Those after the first become a repeat, whose turns read one cache that none of them owns."""
    lowered = run_pipeline(trace(Shares()), CPU, options_of(*combination), verify=True)
    assert "repeat" in [n.name for n in lowered.graph.nodes]
    assert {v.type.layout for v in caches_of(lowered.graph)} == {layout_of(*combination)}
    run_pass(KVLayout(*combination[:2], None, combination[2]), Lowered(trace(Shares())), CPU)


def test_a_cache_that_is_appended_to_twice() -> None:
    run_pipeline(trace(AttendsTo("twice")), CPU, {"kv_layout": {"policy": "shift"}}, verify=True)


def test_a_cache_that_is_an_input() -> None:
    graph = trace(Reader())
    lowered = run_pipeline(graph, CPU, verify=True)
    assert [str(v.type.layout) for v in lowered.graph.inputs] == [
        "None", "None", "bnsd:paged/4", "bnsd:paged/4"]
    assert [v.name for v in lowered.graph.state] == [TABLE]
    assert run_pipeline(graph, CPU, {"kv_layout": {"order": "sbnd"}}).graph.inputs[2].type == (
        lowered.graph.inputs[2].type)


@pytest.mark.parametrize("seed", range(16))
def test_random_layers(seed: int) -> None:
    """Random Layers and Models keep their numbers in a random layout."""
    draw = random.Random(seed)
    graph = (random_model if seed % 4 == 3 else random_layer)(seed + 500)
    combination = draw.choice(ALL)
    lowered = run_pipeline(graph, draw.choice([CPU, TAKING]), options_of(*combination),
                           verify=True)
    assert {v.type.layout for v in lowered.graph.state if v.name != TABLE} == {
        layout_of(*combination)}


@pytest.mark.parametrize("layer", [Attends, Doubles, Present], ids=lambda t: t.__name__.lower())
def test_golden(layer: Any, golden: Golden) -> None:
    lowered = run_pipeline(trace(layer()), CPU, options_of("sbnd", "paged", "int8"))
    fired = [f"{f.rule} ({f.scope})" for report in lowered.report for f in report.fired
             if f.rule in ("KVLayout", "Relayout")]
    golden(f"passes/kv_layout_{layer.__name__.lower()}.txt",
           "\n".join([text(lowered.graph, locations=False), "", *fired]))
