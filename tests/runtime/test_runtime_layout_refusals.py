"""What does not fit caches of a layout is refused before native code, through every door."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runtime_layers import PAGED, Block, built, opened

from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer
from graphdsl.ops import attention
from graphdsl.runtime.operator import Operator, State
from graphdsl.runtime.torch_class import register

X = torch.randn(2, 3, 32)
POSITIONS = torch.arange(3, dtype=torch.int32).repeat(2, 1)

Change = Callable[[State], None]


def without_block(sequence: int, page: int) -> Change:
    def change(state: State) -> None:
        state["block_table"][sequence, page] = -1
    return change


def entry(number: int) -> Change:
    def change(state: State) -> None:
        state["block_table"][0, 1] = number
    return change


def replaced(name: str, tensor: torch.Tensor) -> Change:
    def change(state: State) -> None:
        state[name] = tensor
    return change


def unchanged(state: State) -> None:
    del state


# The state is that of 2 sequences of 8 slots: 4 blocks of 4.
REFUSED: list[tuple[Change, int, str, str]] = [
    (unchanged, 6, "positions holds 8, but block_table has 2 pages of 4 slots for a sequence, so "
     "that positions end at 7", "make a state with more slots, or a block table with more pages"),
    (unchanged, -2, "positions holds -2, wanted -1 to 7", ""),
    (without_block(1, 1), 3, r"positions of sequence 1 reach 5, but block_table\[1, 1\] is "
     "-1: slots 4 to 7 have no block", "put the number of a free block into block_table"),
    (without_block(0, 0), 3, r"positions of sequence 0 reach 5, but block_table\[0, 0\] is "
     "-1: slots 0 to 3 have no block", ""),
    (entry(4), 0, "block_table holds 4, wanted -1 to 3", "numbers of blocks of the pool"),
    (entry(-2), 0, "block_table holds -2, wanted -1 to 3", ""),
    (replaced("block_table", torch.zeros(3, 2, dtype=torch.int32)), 0,
     "batch is 3, but it has to be 2", ""),
    (replaced("block_table", torch.zeros(2, 2, dtype=torch.int64)), 0,
     "block_table is torch.int64, wanted torch.int32", ""),
    (replaced("kv.v", torch.zeros(5, 2, 4, 16)), 0, "blocks is 5, but it has to be 4", ""),
]


@pytest.mark.parametrize("seen", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(("change", "past", "message", "hint"), REFUSED)
def test_paged_caches(paged: Operator, change: Change, past: int, message: str, hint: str,
                      seen: bool) -> None:
    state = paged.new_state(2, 8)
    if seen:
        paged(X, POSITIONS, state=state)
    change(state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(GraphError, match=message) as refused:
        paged(X, POSITIONS + past, state=state)
    assert hint in refused.value.hint
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.full
@pytest.mark.parametrize(("change", "past", "message", "hint"), REFUSED[:6])
def test_paged_caches_behind_the_torch_class(paged: Operator, class_cache: Path, change: Change,
                                             past: int, message: str, hint: str) -> None:
    name = register(paged, "refusing", cache=class_cache, environment=dict(os.environ))
    state = paged.new_state(2, 8)
    change(state)
    del hint
    with pytest.raises(RuntimeError, match=message):
        torch.classes.graphdsl.Operation(name).execute([X, POSITIONS + past, *state.values()])


def test_padding_needs_no_block(paged: Operator) -> None:
    state = paged.new_state(2, 8)
    state["block_table"][1] = -1
    positions = POSITIONS.clone()
    positions[1] = -1
    y = paged(X, positions, state=state)
    alone = paged(X[:1], POSITIONS[:1], state=paged.new_state(1, 8))
    torch.testing.assert_close(y[:1], alone)


class Later(Layer):
    """Positions that the layer computes, so that nobody knows them before it runs."""

    signature = ("x[batch, tokens, 2, 16], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, 2, 16]")

    def __init__(self) -> None:
        self.kv = KVCache(2, 16)

    def forward(self, x: Value, positions: Value) -> Value:
        later = positions + 1
        kv = self.kv.append(x, x, later)
        return attention(x, kv.k, kv.v, later)


def test_positions_that_are_computed_need_every_block(cache: Path) -> None:
    later = opened(built(Later(), cache, layout=PAGED))
    x, state = torch.randn(2, 3, 2, 16), later.new_state(2, 8)
    assert later.manifest["paged"] == [{"positions": None, "table": "block_table", "block": 4}]
    assert later(x, POSITIONS, state=state).shape == x.shape
    state["block_table"][1, 1] = -1
    with pytest.raises(GraphError, match=r"slots of sequence 1 reach 7, but block_table\[1, 1\]"):
        later(x, POSITIONS, state=state)


def test_a_pool_of_other_blocks(paged: Operator) -> None:
    state = paged.new_state(2, 8) | {"kv.k": torch.zeros(4, 2, 8, 16)}
    with pytest.raises(GraphError, match=r"kv\.k is \[4, 2, 8, 16\], wanted \[blocks, 2, 4, 16\]"
                       r": 4 is 8.*\n.*has blocks of 8 slots, the build has blocks of 4"):
        paged(X, POSITIONS, state=state)


def test_a_cache_of_another_order(block: Operator, paged: Operator) -> None:
    state = block.new_state(2, 8)
    state["kv.k"] = state["kv.k"].transpose(1, 2).contiguous()
    with pytest.raises(GraphError, match=r"the shape is that of bsnd, the build has bnsd"):
        block(X, POSITIONS, state=state)
    state["kv.k"] = torch.zeros(8, 2, 2, 16)
    with pytest.raises(GraphError, match=r"kv\.k is \[8, 2, 2, 16\], wanted \[batch, 2, slots, 16\]"
                       r".*\n.*the shape is that of sbnd, the build has bnsd"):
        block(X, POSITIONS, state=state)
    pool = paged.new_state(2, 8) | {"kv.v": torch.zeros(4, 4, 2, 16)}
    with pytest.raises(GraphError, match="the shape is that of bsnd, the build has bnsd:paged/4"):
        paged(X, POSITIONS, state=pool)


def test_the_block_table_has_to_be_there(paged: Operator) -> None:
    state = paged.new_state(2, 8)
    del state["block_table"]
    with pytest.raises(GraphError, match=r"state has kv\.k, kv\.v, wanted kv\.k, kv\.v, "
                                         "block_table"):
        paged(X, POSITIONS, state=state)


def test_storage_of_another_dtype(cache: Path, block: Operator) -> None:
    stored = opened(built(Block(), cache, layout="bnsd:int8"))
    floats, numbers = block.new_state(2, 8), stored.new_state(2, 8)
    with pytest.raises(GraphError, match=r"kv\.k is torch.float32, wanted torch.int8\n.*"
                       r"operator.new_state.*bnsd:int8 of \[batch, 2, slots, 20\]"):
        stored(X, POSITIONS, state=floats)
    with pytest.raises(GraphError, match=r"kv\.k is torch.int8, wanted torch.float32\n.*"
                       r"operator.new_state.*bnsd of \[batch, 2, slots, 16\]"):
        block(X, POSITIONS, state=numbers)
    short = {name: tensor[..., :16].contiguous() for name, tensor in numbers.items()}
    with pytest.raises(GraphError, match=r"wanted \[batch, 2, slots, 20\]: 20 is 16"):
        stored(X, POSITIONS, state=short)


def test_capacity_of_a_cache_that_shifts(cache: Path) -> None:
    shifting = opened(built(Block(), cache, layout="bsnd:shift"))
    with pytest.raises(GraphError, match=r"positions holds 8, wanted -1 to 7\n.*cache is full"):
        shifting(X, POSITIONS + 6, state=shifting.new_state(2, 8))


def test_a_state_that_no_build_takes(paged: Operator) -> None:
    with pytest.raises(GraphError, match="slots is 0, wanted 1 to"):
        paged.new_state(2, 0)
    with pytest.raises(GraphError, match="slots is 1048577, wanted 1 to 1048576"):
        paged.new_state(1, (1 << 20) + 1)
