"""Operators whose caches have any layout: their state, their sizes and their doors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_layers import PAGED, SLOTS, Block, built, opened, session, steps

import graphdsl
from graphdsl import reference
from graphdsl.errors import GraphError
from graphdsl.layer import trace
from graphdsl.layout import Layout
from graphdsl.passes.samples import samples
from graphdsl.reference import STORAGE_TOLERANCE, TOLERANCE, error_of
from graphdsl.runtime.caches import (
    Filled,
    dequantised,
    logical,
    physical,
    quantised,
    tiled,
    untiled,
)
from graphdsl.runtime.dims import PlanDim
from graphdsl.runtime.door import torch_op
from graphdsl.runtime.module import OperatorModule
from graphdsl.runtime.operator import Operator, State
from graphdsl.runtime.ports import Extent, Port
from graphdsl.runtime.torch_class import register

LAYOUTS = ("sbnd", PAGED, "bsnd:shift", "sbnd:paged/3:int8")


@pytest.fixture(scope="session", params=LAYOUTS)
def laid(request: pytest.FixtureRequest, cache: Path) -> Operator:
    return opened(built(Block(), cache, layout=request.param))


def port_of(layout: str, dtype: str = "f32") -> dict[str, Any]:
    """What a manifest says of a cache."""
    known = Layout.parse(layout)
    return {"name": "kv.k", "dtype": dtype, "shape": [2, 8, 2, 16],
            "layout": {"order": known.order, "policy": known.policy, "block": known.block,
                       "storage": known.storage}}


def layout_of(operator: Operator) -> Layout:
    layout = operator.state[0].layout
    assert layout is not None
    return layout


def tolerance_of(operator: Operator) -> float:
    return STORAGE_TOLERANCE.get(layout_of(operator).storage, TOLERANCE["f32"])


def test_a_new_state_is_as_the_layout_says(laid: Operator) -> None:
    shapes = {
        "sbnd": [32, 2, 2, 16],
        "bnsd:paged/4": [16, 2, 4, 16],
        "bsnd:shift": [2, 32, 2, 16],
        "sbnd:paged/3:int8": [3, 22, 2, 20],
    }
    layout, state = layout_of(laid), laid.new_state(2, SLOTS)
    assert list(state) == [port.name for port in laid.state]
    assert list(state["kv.k"].shape) == shapes[str(layout)]
    assert state["kv.k"].dtype == (torch.int8 if layout.storage else torch.float32)
    assert ("block_table" in state) == (layout.policy == "paged")
    if layout.policy == "paged":
        pages = laid.whole_pages(SLOTS) // layout.block
        assert torch.equal(state["block_table"].flatten().sort()[0],
                           torch.arange(2 * pages, dtype=torch.int32))


def test_all_layouts_give_equal_results(laid: Operator, block: Operator) -> None:
    wanted = session(block, block.new_state(2, SLOTS))
    found = session(laid, laid.new_state(2, SLOTS))
    assert max(map(error_of, found, wanted)) < tolerance_of(laid)


def test_rows_of_different_length(laid: Operator) -> None:
    x = torch.randn(2, 4, 32)
    padded = torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]], dtype=torch.int32)
    both = laid(x, padded, state=laid.new_state(2, 8))
    alone = laid(x[1:, 2:].contiguous(), padded[1:, 2:].contiguous(), state=laid.new_state(1, 8))
    torch.testing.assert_close(both[1:, 2:], alone)


def test_one_build_serves_every_capacity_and_batch(laid: Operator, block: Operator) -> None:
    for batch, slots in ((1, 8), (3, 8), (2, 300), (1, 8), (4, 17)):
        x, positions = next(steps(batch, (7,)))
        found = laid(x, positions, state=laid.new_state(batch, slots))
        wanted = block(x, positions, state=block.new_state(batch, slots))
        assert error_of(found, wanted) < tolerance_of(laid)


def test_slots_are_those_of_whole_pages(paged: Operator) -> None:
    assert {d.name: str(d.equals) for d in paged.dims if d.equals} == {"slots": "4*pages"}
    assert [paged.whole_pages(slots) for slots in (1, 8, 9)] == [4, 8, 12]


def test_bounds_of_a_dim_that_is_computed() -> None:
    slots = PlanDim("slots", 1, 10, Extent((("pages", 4),), 0))
    sizes = {"pages": 3}
    slots.check("Block", sizes)  # the last page may reach beyond 10
    assert sizes["slots"] == 12
    with pytest.raises(GraphError, match="Block: slots is 16, wanted 1 to 10"):
        slots.check("Block", {"pages": 4})
    with pytest.raises(GraphError, match=r"slots is 9, but 4\*pages is 12\n.*a mask or cache has"):
        slots.check("Block", {"pages": 3, "slots": 9})


@pytest.mark.parametrize("layout", ["sbnd", "bsnd:paged/3", "bnsd:shift", "bnsd:paged/4:int8",
                                    "sbnd:shift:int8", "bsnd:int8", "bsnd:nz",
                                    "bsnd:paged/4:nz"])
def test_to_memory_and_back(layout: str) -> None:
    lengths, table = torch.tensor([7, 3]), torch.tensor([[4, 1, 3], [0, 5, 6]])
    rows = torch.randn(2, 8, 2, 16, generator=torch.Generator().manual_seed(0))
    place: dict[str, Any] = {"table": table, "lengths": lengths}
    memory = physical(rows, port_of(layout), blocks=7, **place)
    back = logical(memory, port_of(layout), **place)
    wanted = rows
    if "shift" in layout:
        wanted = torch.where((torch.arange(8) < lengths[:, None])[..., None, None], rows, 0)
    assert error_of(back[:, :8], wanted) <= (1 / 254 if "int8" in layout else 0)
    if "shift" in layout:
        order = Layout.parse(layout).order
        last = memory.permute([order.index(axis) for axis in "bsnd"])[:, -1]
        kept = dequantised(last, torch.float32) if "int8" in layout else last
        assert error_of(kept, rows[[0, 1], lengths - 1]) <= 1 / 254


def test_slots_of_a_page_without_a_block_are_0() -> None:
    rows, table = torch.ones(1, 8, 1, 2), torch.tensor([[1, -1]])
    memory = physical(rows, port_of("bsnd:paged/4"), table=table, blocks=2)
    assert memory.flatten(1).sum(1).tolist() == [0, 8]
    assert logical(memory, port_of("bsnd:paged/4"), table=table).flatten(2).sum(2).tolist() == [
        [2, 2, 2, 2, 0, 0, 0, 0]]


def test_int8_rows_and_their_scale() -> None:
    rows = torch.tensor([[127.0, -63.5, 2.5, 3.5], [0.0, 0.0, 0.0, 0.0]])
    stored = quantised(rows)
    assert stored.dtype == torch.int8
    assert stored[:, :4].tolist() == [[127, -64, 2, 4], [0, 0, 0, 0]]
    assert stored[:, 4:].contiguous().view(torch.float32).flatten().tolist() == [1.0, 0.0]
    assert dequantised(stored, torch.bfloat16).tolist() == [[127, -64, 2, 4], [0, 0, 0, 0]]


def test_tiles_of_16_columns() -> None:
    rows = torch.arange(2 * 3 * 20).view(2, 3, 5, 4)
    tiles = tiled(rows)
    assert tiles.shape == Layout("bsnd", storage="nz").physical((2, 3, 5, 4))
    assert tiles[1, 0, 2].tolist() == rows[1, 2].flatten()[:16].tolist()
    assert tiles[1, 1, 2].tolist() == [*rows[1, 2, 4].tolist(), *[0] * 12]
    assert untiled(tiles, 5, 4).equal(rows)


def test_tiles_of_slots_are_whole() -> None:
    slots = {"dims": {"slots": 1}, "const": 0}
    port = Port.read({**port_of("bsnd:nz"), "shape": [2, slots, 2, 16]})
    dims: dict[str, int] = {}
    port.check("Layer", torch.zeros(2, 2, 32, 16), dims)
    assert dims == {"slots": 32}
    with pytest.raises(GraphError, match="has 20 slots, wanted a multiple") as caught:
        port.check("Layer", torch.zeros(2, 2, 20, 16), {})
    assert caught.value.hint == "operator.new_state(batch, slots) rounds them up"


def test_blocks_are_given_out_as_they_are_needed(paged: Operator, block: Operator) -> None:
    state, free = paged.new_state(2, SLOTS), torch.randperm(16, dtype=torch.int32).tolist()
    state["block_table"].fill_(-1)
    own = block.new_state(2, SLOTS)
    for x, positions in steps():
        for page in range(int(positions.max()) // 4 + 1):
            for row in state["block_table"]:
                row[page] = free.pop() if row[page] < 0 else row[page]
        found = paged(x, positions, state=state)
        assert error_of(found, block(x, positions, state=own)) < TOLERANCE["f32"]
    assert free == []


def test_sequences_may_share_the_blocks_of_their_beginning(paged: Operator) -> None:
    x, positions = next(steps(1, (8,)))
    later, at = torch.randn(2, 1, 32), torch.full((2, 1), 8, dtype=torch.int32)
    alone = paged.new_state(1, 12)
    paged(x, positions, state=alone)
    shared: State = {name: torch.cat([t, t[:1]]) for name, t in alone.items()}
    shared["block_table"] = torch.tensor([[0, 1, 2], [0, 1, 3]], dtype=torch.int32)
    both = paged(later, at, state=shared)
    for row in range(2):
        own = {name: t.clone() for name, t in alone.items()}
        torch.testing.assert_close(paged(later[row:row + 1], at[:1], state=own)[0], both[row])


def test_a_filled_state_is_that_of_the_reference(laid: Operator) -> None:
    graph, dims = trace(Block()), {"batch": 2, "tokens": 3, "slots": 10}
    given = samples(graph, 3, dims, past=5)
    filled = Filled.of(laid.manifest, given.inputs, dims)
    assert filled.before.tolist() == [5, 5]
    assert filled.after.tolist() == [8, 7]
    caches = filled.held(given.state)
    state = filled.state(caches)
    found = laid.with_weights(given.params)(*filled.inputs(given.inputs), state=state)
    wanted, *new = reference.run(graph, given.inputs, given.params, caches)
    assert error_of(found, wanted) < tolerance_of(laid)
    for name, cache in zip(given.state, new, strict=True):
        assert error_of(filled.caches(state)[name], cache) < tolerance_of(laid)


def test_paged_caches_through_every_door(paged: Operator, class_cache: Path) -> None:
    wanted = session(paged, paged.new_state(2, SLOTS))
    name = register(paged, "paged", cache=class_cache, environment=dict(os.environ))
    made, named = torch.classes.graphdsl.Operation(name), torch_op(paged)
    first, second = (list(paged.new_state(2, SLOTS).values()) for _ in range(2))
    for (x, positions), y in zip(steps(), wanted, strict=True):
        assert torch.equal(made.execute([x, positions, *first])[0], y)
        assert torch.equal(named(x, positions, paged.weights, second), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_exported_program_has_any_number_of_pages(paged: Operator) -> None:
    x, positions = next(steps(2, (3,)))
    state = list(paged.new_state(2, 12).values())
    batch, tokens, blocks, pages = (torch.export.Dim(n) for n in "btnp")
    sizes = ({0: batch, 1: tokens}, {0: batch, 1: tokens},
             [{0: blocks}, {0: blocks}, {0: batch, 1: pages}])
    module = OperatorModule(paged)
    program = torch.export.export(module, (x, positions, state), dynamic_shapes=(sizes,))
    x, positions = next(steps(3, (5,)))
    found = program.module()(x, positions, list(paged.new_state(3, 21).values()))
    assert torch.equal(found, paged(x, positions, state=paged.new_state(3, 21)))


def test_a_build_from_python_takes_the_options_of_passes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(tmp_path))
    operator = graphdsl.build(Block(), passes={"kv_layout": {"policy": "paged", "block": 4}})
    assert str(layout_of(operator)) == "bnsd:paged/4"
    with pytest.raises(GraphError, match="no option colour"):
        graphdsl.build(Block(), passes={"kv_layout": {"colour": 4}})
