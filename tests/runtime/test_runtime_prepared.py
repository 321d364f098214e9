"""Prepared calls: the results of plain ones, from the numbers and weights of the moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from runtime_layers import SLOTS, close

from graphdsl.errors import GraphError
from graphdsl.runtime.operator import Operator

STEPS = 6


def steps(block: Operator, between: Callable[[int], object] = lambda step: None) -> None:
    """Compares steps of one token on the same tensors with plain calls on another state."""
    theirs, ours = block.new_state(2, SLOTS), block.new_state(2, SLOTS)
    x, positions = torch.empty(2, 1, 32), torch.zeros(2, 1, dtype=torch.int32)
    call = block.prepared(x, positions, state=ours)
    seen = set()
    for step in range(STEPS):
        x.copy_(torch.randn(2, 1, 32))
        positions.fill_(step)
        found = call()
        seen.add(found.data_ptr())
        wanted = found.clone()
        between(step)
        assert close([block(x, positions, state=theirs), call()], [wanted, wanted])
    assert len(seen) == 1
    assert close(list(ours.values()), list(theirs.values()))


def test_as_plain_calls(block: Operator) -> None:
    with torch.inference_mode():
        steps(block)


def test_in_grad_mode(block: Operator) -> None:
    steps(block)


@pytest.mark.usefixtures("threads")
def test_with_other_threads(block: Operator) -> None:
    steps(block, lambda step: torch.set_num_threads(1 + step % 2))


def test_among_larger_calls(block: Operator) -> None:
    """The workspace grows, and the plan that was known goes with it."""
    def larger(step: int) -> None:
        tokens = 4 + step
        positions = torch.arange(tokens, dtype=torch.int32)[None]
        block(torch.randn(1, tokens, 32), positions, state=block.new_state(1, tokens))
    steps(block, larger)


def test_new_weights_are_read(pair: Operator) -> None:
    x = torch.randn(1, 3, 32)
    call = pair.prepared(x)
    for scale in (1.0, 2.0):
        pair.bind({"norm": torch.full((32,), scale), "w": torch.full((48, 32), scale)})
        wanted = pair(x)
        for _ in range(3):
            assert close(call(), wanted)


def test_numbers_out_of_range_are_refused(block: Operator) -> None:
    x, positions = torch.randn(2, 1, 32), torch.zeros(2, 1, dtype=torch.int32)
    call = block.prepared(x, positions, state=block.new_state(2, SLOTS))
    wanted = [call().clone() for _ in range(3)][-1]
    positions.fill_(99)
    with pytest.raises(GraphError, match="positions holds 99"):
        call()
    positions.fill_(0)
    assert torch.equal(call(), wanted)


def test_tensors_that_do_not_fit_are_refused(block: Operator) -> None:
    call = block.prepared(torch.randn(2, 1, 31), torch.zeros(2, 1, dtype=torch.int32),
                          state=block.new_state(2, SLOTS))
    for _ in range(2):
        with pytest.raises(GraphError, match="wanted"):
            call()
