"""Binding weights by their declared names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime_layers import weights_of

from graphdsl.errors import GraphError
from graphdsl.runtime.operator import Operator, load

X = torch.randn(1, 2, 32)


def test_a_call_before_bind(pair_path: Path) -> None:
    with pytest.raises(GraphError, match=r"no weights are bound\n.*operator.bind"):
        load(pair_path)(X)


def test_missing_and_extra(pair: Operator) -> None:
    weights = weights_of(pair)
    with pytest.raises(GraphError, match=r"Pair: weight norm is missing\n.*weights: norm, w"):
        pair.bind({"w": weights["w"]})
    with pytest.raises(GraphError, match="weight norm is missing, and 1 more"):
        pair.bind({})
    with pytest.raises(GraphError, match="bias is not a weight"):
        pair.bind({**weights, "bias": torch.zeros(1)})


@pytest.mark.parametrize(("tensor", "message"), [
    (torch.zeros(32, 48), r"weight w is \[32, 48\], wanted \[48, 32\]"),
    (torch.zeros(48, 32, dtype=torch.int8), "weight w is torch.int8, wanted a floating dtype"),
    (torch.zeros(48, 32, device="meta"), "weight w is on meta, wanted the CPU"),
    ([[0.0] * 32] * 48, "weight w is a list, wanted a torch.Tensor"),
])
def test_weights_that_do_not_fit(pair: Operator, tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        pair.bind({**weights_of(pair), "w": tensor})


def test_a_failed_bind_changes_nothing(pair: Operator) -> None:
    before = pair(X)
    with pytest.raises(GraphError, match="is missing"):
        pair.bind({})
    assert all(torch.equal(a, b) for a, b in zip(pair(X), before, strict=True))


def test_other_floating_dtypes_and_strides_are_converted(pair: Operator) -> None:
    weights = weights_of(pair)
    rounded = {n: t.bfloat16().float() for n, t in weights.items()}
    wanted = pair.bind(rounded)(X)
    for converted in ({n: t.bfloat16() for n, t in weights.items()},
                      {n: t.double() for n, t in rounded.items()},
                      {n: torch.nn.Parameter(t.t().contiguous().t())
                       for n, t in rounded.items()}):
        found = pair.bind(converted)(X)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_weights_are_copies(pair: Operator) -> None:
    weights = weights_of(pair)
    before = pair.bind(weights)(X)
    for tensor in weights.values():
        tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(pair(X), before, strict=True))


def test_other_weights_on_the_same_plan(pair: Operator) -> None:
    first = pair(X)
    other = pair.bind(weights_of(pair, seed=5))(X)
    assert not torch.equal(first[0], other[0])
    again = pair.bind(weights_of(pair))(X)
    assert torch.equal(first[0], again[0])


def test_packed_weights_are_checked(pair: Operator) -> None:
    weights = pair.weights
    wanted = pair(X)
    assert torch.equal(pair.run([X], weights, [])[0], wanted[0])
    with pytest.raises(GraphError, match=r"1 packed weights given, 2 wanted\n.*operator.weights"):
        pair.run([X], weights[:1], [])
    with pytest.raises(GraphError, match=r"packed weight norm is torch\.uint8"):
        pair.run([X], weights[::-1], [])
    with pytest.raises(GraphError, match="packed weight w is"):
        pair.run([X], [weights[0], weights[1][:-1]], [])


def test_packed_weights_that_change_are_seen(pair: Operator) -> None:
    weights = [w.clone() for w in pair.weights]
    first = pair.run([X], weights, [])[0]
    other = pair.pack_weights(weights_of(pair, seed=5))
    assert not torch.equal(pair.run([X], other, [])[0], first)
    weights[0].resize_(0)
    with pytest.raises(GraphError, match="packed weight norm is"):
        pair.run([X], weights, [])
