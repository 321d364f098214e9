"""Calling an operator: right results, and refusals of what does not fit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from runtime_layers import SLOTS, Block, Pair, session, steps, weights_of

from graphdsl import reference
from graphdsl.errors import GraphError
from graphdsl.layer import trace
from graphdsl.reference import TOLERANCE, error_of
from graphdsl.runtime.caches import logical
from graphdsl.runtime.operator import Operator


def test_steps_with_a_cache_equal_the_reference(block: Operator) -> None:
    graph, weights = trace(Block()), weights_of(block)
    state = block.new_state(2, SLOTS)
    ports = {p["name"]: p for p in block.manifest["state"]}
    caches = {n: logical(t, ports[n]) for n, t in state.items()}
    for x, positions in steps():
        y = block(x, positions, state=state)
        wanted, *new = reference.run(graph, [x, positions], weights, caches)
        assert error_of(y, wanted) < TOLERANCE["f32"]
        caches = dict(zip(caches, new, strict=True))
    for name, tensor in state.items():
        assert error_of(logical(tensor, ports[name]), caches[name]) < TOLERANCE["f32"]


def test_two_results_come_as_a_tuple(pair: Operator) -> None:
    x = torch.randn(2, 3, 32)
    found = pair(x)
    wanted = reference.run(trace(Pair()), [x], weights_of(pair))
    assert isinstance(found, tuple)
    assert all(error_of(a, b) < TOLERANCE["f32"] for a, b in zip(found, wanted, strict=True))


def test_rows_of_different_length_need_no_mask(block: Operator) -> None:
    x = torch.randn(2, 4, 32)
    padded = torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]], dtype=torch.int32)
    state = block.new_state(2, 8)
    both = block(x, padded, state=state)
    alone = block(x[1:, 2:].contiguous(), padded[1:, 2:].contiguous(),
                  state=block.new_state(1, 8))
    torch.testing.assert_close(both[1:, 2:], alone)


def test_state_may_come_in_any_order(block: Operator) -> None:
    x, positions = next(steps())
    state = block.new_state(2, SLOTS)
    turned = dict(reversed(block.new_state(2, SLOTS).items()))
    assert torch.equal(block(x, positions, state=state), block(x, positions, state=turned))
    assert all(torch.equal(state[n], turned[n]) for n in state)


def test_unaligned_tensors_are_fine(block: Operator) -> None:
    x, positions = next(steps())
    shifted = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    assert torch.equal(block(shifted, positions, state=block.new_state(2, SLOTS)),
                       block(x, positions, state=block.new_state(2, SLOTS)))


def test_results_are_new_tensors(pair: Operator) -> None:
    x = torch.randn(1, 1, 32)
    first = pair(x)[0]
    kept = first.clone()
    pair(torch.randn(1, 1, 32))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_the_weights(block: Operator, copied: Callable[[Operator], Operator]) -> None:
    twin = copied(block)
    found = session(twin, twin.new_state(2, SLOTS))
    wanted = session(block, block.new_state(2, SLOTS))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


X = torch.randn(2, 3, 32)
POSITIONS = torch.arange(3, dtype=torch.int32).repeat(2, 1)

REFUSED: list[tuple[Any, Any, str]] = [
    (X[0], POSITIONS, r"Block: x has 2 dims \[3, 32\], wanted \[batch, tokens, 32\]"),
    (torch.randn(2, 3, 31), POSITIONS, r"x is \[2, 3, 31\].*: 32 is 31, but it has to be 32"),
    (X, POSITIONS[:, :2].contiguous(), r"positions is \[2, 2\].*tokens is 2, but .* be 3"),
    (X[:1], POSITIONS, r"positions is \[2, 3\].*batch is 2, but it has to be 1"),
    (X[:, :0], POSITIONS[:, :0], r"tokens is 0, wanted 1 to 1048576"),
    (X.double(), POSITIONS, r"x is torch.float64, wanted torch.float32\n.*x.to\(torch.float32\)"),
    (X, POSITIONS.long(), "positions is torch.int64, wanted torch.int32"),
    (X.to("meta"), POSITIONS, "x is on meta, wanted the CPU"),
    (X.to_sparse(), POSITIONS, "x is torch.sparse_coo, wanted a dense tensor"),
    (X.transpose(0, 1).contiguous().transpose(0, 1), POSITIONS, "x is not contiguous"),
    (X.clone().requires_grad_(), POSITIONS, r"x requires grad.*\n.*torch.no_grad"),
    (X.tolist(), POSITIONS, "x is a list, wanted a torch.Tensor"),
    (X.numpy(), POSITIONS, "x is a ndarray, wanted a torch.Tensor"),
    (X, POSITIONS + 6, r"positions holds 8, wanted -1 to 7\n.*the cache is full"),
    (X, POSITIONS - 2, "positions holds -2, wanted -1 to 7"),
]


@pytest.mark.parametrize("seen", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(("x", "positions", "message"), REFUSED,
                         ids=[str(i) for i in range(len(REFUSED))])
def test_inputs_that_do_not_fit(block: Operator, x: Any, positions: Any, message: str,
                                seen: bool) -> None:
    state = block.new_state(2, 8)
    if seen:
        block(X, POSITIONS, state=state)
    before = {n: t.clone() for n, t in state.items()}
    with pytest.raises(GraphError, match=message):
        block(x, positions, state=state)
    assert all(torch.equal(state[n], before[n]) for n in state)


def test_inputs_that_require_grad_are_fine_without_grad_mode(block: Operator) -> None:
    with torch.no_grad():
        block(X.clone().requires_grad_(), POSITIONS, state=block.new_state(2, 8))


def test_ids_out_of_range(words: Operator) -> None:
    weights, ids = weights_of(words), torch.tensor([[3, 49], [0, 7]], dtype=torch.int32)
    assert torch.equal(words(ids), weights["table"][ids] + weights["short"][ids])
    with pytest.raises(GraphError, match="ids holds 50, wanted 0 to 49"):
        words(torch.tensor([[3, 50]], dtype=torch.int32))
    with pytest.raises(GraphError, match="ids holds -1, wanted 0 to 59"):
        words(torch.tensor([[3, -1]], dtype=torch.int32))


def test_number_of_inputs(block: Operator) -> None:
    with pytest.raises(GraphError, match=r"1 inputs given, 2 wanted\n.*x, positions"):
        block(X, state=block.new_state(2, 8))


def test_states_that_do_not_fit(block: Operator) -> None:
    state = block.new_state(2, 8)
    with pytest.raises(GraphError, match=r"state has none, wanted kv\.k, kv\.v"):
        block(X, POSITIONS)
    with pytest.raises(GraphError, match=r"state has kv\.k, other, wanted kv\.k, kv\.v"):
        block(X, POSITIONS, state={"kv.k": state["kv.k"], "other": state["kv.v"]})
    with pytest.raises(GraphError, match="slots is 4, but it has to be 8"):
        block(X, POSITIONS, state={"kv.k": state["kv.k"],
                                   "kv.v": block.new_state(2, 4)["kv.v"]})
    with pytest.raises(GraphError, match="batch is 3, but it has to be 2"):
        block(X, POSITIONS, state=block.new_state(3, 8))
    with pytest.raises(GraphError, match="slots is 0, wanted 1 to 1048576"):
        block.new_state(1, 0)
    with pytest.raises(GraphError, match="batch is -1, wanted 1 to 4096"):
        block.new_state(-1, 8)
    with pytest.raises(GraphError, match=r"batch is 2\.0, wanted a whole"):
        block.new_state(2.0, 8)


def test_a_layer_without_state_takes_none(pair: Operator) -> None:
    assert pair.new_state(1, 8) == {}
    with pytest.raises(GraphError, match=r"state has kv\.k, wanted none"):
        pair(torch.randn(1, 1, 32), state={"kv.k": torch.zeros(1)})


def test_workspace_that_no_memory_holds(pair: Operator) -> None:
    x = torch.empty(1).expand(4096, 1 << 20, 32)
    with pytest.raises(GraphError, match="x is not contiguous"):
        pair(x)
    needed, least = pair.workspace_bytes({"batch": 1, "tokens": 4})
    assert needed >= least
