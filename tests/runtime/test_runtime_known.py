"""States that are known again: what changed in them between two calls is seen."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from runtime_layers import SLOTS, close, session

from graphdsl.errors import GraphError
from graphdsl.runtime.operator import Operator, State


@pytest.fixture(autouse=True)
def inference() -> object:
    """Only without grad is a state known again."""
    with torch.inference_mode():
        yield


def test_known_again(block: Operator) -> None:
    """Decoding goes by the short way, with the results of the long one."""
    wanted = session(block, block.new_state(2, SLOTS))
    state = block.new_state(2, SLOTS)
    found = session(block, state)
    assert close(found, wanted)
    bound, held = block._plans.states[id(state)]
    assert bound is block._plans.last
    assert held.same_state(state)
    assert not held.same_state({name: t.clone() for name, t in state.items()})
    assert not held.same_state(dict(reversed(state.items())))
    swapped = dict(zip(state, reversed(state.values()), strict=True))
    assert not held.same_state(swapped)


@pytest.mark.parametrize(("change", "message"), [
    (lambda state, k: state.update({k: state[k].double()}), "wanted torch.float32"),
    (lambda state, k: state.update({k: state[k][:, :1]}), "wanted"),
    (lambda state, k: state[k].set_(torch.zeros(3)), "has 1 dims"),
    (lambda state, k: state.pop(k), "state has"),
    (lambda state, k: state.update(more=state[k]), "state has"),
    (lambda state, k: state.update({k: "none"}), "wanted a torch.Tensor"),
])
def test_a_changed_state_is_refused(change: Callable[[State, str], object], message: str,
                                    block: Operator) -> None:
    state = block.new_state(2, SLOTS)
    x, positions = torch.randn(2, 1, 32), torch.zeros(2, 1, dtype=torch.int32)
    for _ in range(2):
        block(x, positions, state=state)
    change(state, next(iter(state)))
    with pytest.raises(GraphError, match=message):
        block(x, positions, state=state)


def test_other_inputs_are_refused(block: Operator) -> None:
    state = block.new_state(2, SLOTS)
    x, positions = torch.randn(2, 1, 32), torch.zeros(2, 1, dtype=torch.int32)
    for _ in range(2):
        block(x, positions, state=state)
    for wrong, message in ((x.double(), "wanted torch.float32"), (x[:1], "wanted"),
                           (None, "wanted")):
        with pytest.raises(GraphError, match=message):
            block(wrong, positions, state=state)
    with pytest.raises(GraphError, match="1 inputs given, 2 wanted"):
        block(x, state=state)
    with pytest.raises(GraphError, match="holds 99"):
        block(x, positions + 99, state=state)


def test_a_state_is_not_kept_alive(block: Operator) -> None:
    state = block.new_state(2, SLOTS)
    session(block, state)
    _, held = block._plans.states[id(state)]
    name, tensor = next(iter(state.items()))
    del state
    gc.collect()
    assert not held.same_state({name: tensor})


@pytest.mark.parametrize(("out", "message"), [
    ([], "0 tensors given as out, 1 wanted"),
    ([torch.empty(2, 1, 31)], r"is \[2, 1, 31\], wanted"),
    ([torch.empty(2, 1, 32, dtype=torch.bfloat16)], "wanted torch.float32"),
    ([torch.empty(32, 1, 2).permute(2, 1, 0)], "is not contiguous"),
    ([None], "wanted a torch.Tensor"),
])
def test_results_that_do_not_fit(out: list[torch.Tensor], message: str, block: Operator) -> None:
    state = block.new_state(2, SLOTS)
    x, positions = torch.randn(2, 1, 32), torch.zeros(2, 1, dtype=torch.int32)
    for _ in range(2):
        with pytest.raises(GraphError, match=message):
            block(x, positions, state=state, out=out)
        block(x, positions, state=state)
