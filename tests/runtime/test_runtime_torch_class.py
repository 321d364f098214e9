"""`torch.classes.graphdsl.Operation`."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_layers import SLOTS, Block, built, child_result, close, opened, session, steps

from graphdsl.api import register_torch_class
from graphdsl.errors import GraphError, ToolError
from graphdsl.runtime.door import torch_op
from graphdsl.runtime.operator import Operator, load
from graphdsl.runtime.torch_class import class_library, register

X, POSITIONS = next(steps())


def operation(operator: Operator, cache: Path, name: str | None = None) -> Any:
    chosen = register(operator, name, cache=cache, environment=dict(os.environ))
    return torch.classes.graphdsl.Operation(chosen)


def caches(operator: Operator) -> list[torch.Tensor]:
    return list(operator.new_state(2, SLOTS).values())


def run_session(made: Any, own: list[torch.Tensor], seed: int = 1) -> list[torch.Tensor]:
    return [made.execute([x, positions, *own])[0] for x, positions in steps(seed=seed)]


def test_equals_the_operator(block: Operator, class_cache: Path) -> None:
    state, own = block.new_state(2, SLOTS), caches(block)
    found = run_session(operation(block, class_cache), own)
    wanted = session(block, state)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(own, state.values(), strict=True))


def test_several_results_without_state(pair: Operator, class_cache: Path) -> None:
    found = operation(pair, class_cache).execute([X])
    assert all(torch.equal(a, b) for a, b in zip(found, pair(X), strict=True))


def test_bf16_through_every_door(cache: Path, class_cache: Path) -> None:
    operator = opened(built(Block(), cache, "bf16"))
    state, first, second = operator.new_state(2, SLOTS), caches(operator), caches(operator)
    wanted = session(operator, state)
    made, named = operation(operator, class_cache, "bf16"), torch_op(operator)
    weights = operator.weights
    for (x, positions), y in zip(steps(), wanted, strict=True):
        x = x.bfloat16()
        assert y.dtype == torch.bfloat16
        assert torch.equal(made.execute([x, positions, *first])[0], y)
        assert torch.equal(named(x, positions, weights, second), y)
    assert all(torch.equal(a, b) and torch.equal(a, c)
               for a, b, c in zip(state.values(), first, second, strict=True))


@pytest.mark.usefixtures("threads")
def test_many_lengths_and_thread_counts(block: Operator, class_cache: Path) -> None:
    made = operation(block, class_cache)
    for count in (1, 2):
        torch.set_num_threads(count)
        for tokens in (1, 30, *range(1, 20)):
            x, positions = next(steps(2, (tokens,)))
            found = made.execute([x, positions, *caches(block)])[0]
            assert torch.equal(found, block(x, positions, state=block.new_state(2, SLOTS)))


def test_the_result_outlives_the_operator(block_path: Path, block: Operator,
                                          class_cache: Path) -> None:
    wanted = block(X, POSITIONS, state=block.new_state(2, SLOTS))
    other = load(block_path).bind_packed(block.weights)
    made = operation(other, class_cache, "outlived")
    del other
    assert torch.equal(made.execute([X, POSITIONS, *caches(block)])[0], wanted)


def test_results_into_tensors_that_are_given(block: Operator, class_cache: Path) -> None:
    made, own, other = operation(block, class_cache), caches(block), caches(block)
    (wanted,) = made.execute([X, POSITIONS, *own])
    result = torch.empty_like(wanted)
    assert made.execute_out([X, POSITIONS, *other], [result]) is None
    assert torch.equal(result, wanted)
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


@pytest.mark.parametrize(("outputs", "message"), [
    ([], "0 outputs given, wanted 1"),
    ([torch.empty(2, 7, 16)], r"the output .* is \[2, 7, 16\]"),
    ([torch.empty(2, 7, 32).double()], "the output .* is Double, wanted Float"),
    ([X], "the output .* shares memory with another tensor of the call"),
])
def test_outputs_that_do_not_fit(block: Operator, class_cache: Path, outputs: list[torch.Tensor],
                                 message: str) -> None:
    own = caches(block)
    with pytest.raises(RuntimeError, match=f"Block: {message}"):
        operation(block, class_cache).execute_out([X, POSITIONS, *own], outputs)
    assert not any(t.any() for t in own)


def test_a_name_for_errors_and_numbers_from_the_build(block: Operator, class_cache: Path) -> None:
    made = operation(block, class_cache)
    made.set_name("first")
    with pytest.raises(RuntimeError, match="first: 1 tensors given"):
        made.execute([X])
    with pytest.raises(RuntimeError, match="first: x is None, wanted a tensor"):
        made.execute([None, POSITIONS, *caches(block)])
    with pytest.raises(RuntimeError, match="first: set_param: an operator has its numbers from"):
        made.set_param("{}")


def test_names(block: Operator, pair: Operator, class_cache: Path) -> None:
    first = operation(pair, class_cache, "named")
    second = operation(block, class_cache, "named")
    assert len(first.execute([X])) == 2
    assert len(second.execute([X, POSITIONS, *caches(block)])) == 1
    with pytest.raises(RuntimeError, match=r"no operation Nothing is registered\n.*named"):
        torch.classes.graphdsl.Operation("Nothing")


@pytest.mark.parametrize("other", ["layer", Path])
def test_what_is_no_operator_is_refused(other: Any) -> None:
    with pytest.raises(GraphError, match=rf"torch_class: {type(other).__name__} is neither an Oper"
                       r"(?s:.)*hint: graphdsl\.build"):
        register_torch_class(other)


def test_weights_have_to_be_bound(block_path: Path, class_cache: Path) -> None:
    with pytest.raises(GraphError, match="no weights are bound"):
        operation(load(block_path), class_cache)


@pytest.mark.parametrize(("tensors", "message"), [
    ([X], "1 tensors given, wanted 2 inputs and 2 state tensors"),
    ([X[0], POSITIONS], r"x has 2 dims \[7, 32\], wanted \[batch, tokens, 32\]"),
    ([X[:, :, :16], POSITIONS], r"x is \[2, 7, 16\], .* is 16, but it has to be 32"),
    ([X, POSITIONS[:, :2].contiguous()], r"positions is \[2, 2\], .* 2, but it has to be 7"),
    ([X[:, :0], POSITIONS[:, :0]], "tokens is 0, wanted 1 to 1048576"),
    ([X.double(), POSITIONS], "x is Double, wanted Float"),
    ([X.to("meta"), POSITIONS], "x is on meta, wanted the CPU"),
    ([X.to_sparse(), POSITIONS], "x is Sparse, wanted a dense tensor"),
    ([X.transpose(0, 1).contiguous().transpose(0, 1), POSITIONS], "x is not contiguous"),
    ([X.clone().requires_grad_(), POSITIONS], "x requires grad"),
    ([X, POSITIONS + SLOTS], "positions holds 32, wanted -1 to 31"),
    ([X, POSITIONS - 2], "positions holds -2, wanted -1 to 31"),
], ids=str)
def test_what_does_not_fit(block: Operator, class_cache: Path, tensors: list[torch.Tensor],
                           message: str) -> None:
    own = caches(block) if len(tensors) == 2 else []
    with pytest.raises(RuntimeError, match=f"Block: {message}"):
        operation(block, class_cache).execute([*tensors, *own])
    assert not any(t.any() for t in own)


def test_threads(block: Operator, class_cache: Path) -> None:
    wanted = [session(block, block.new_state(2, SLOTS), seed) for seed in range(3)]
    shared = operation(block, class_cache)
    own = [operation(block, class_cache) for _ in range(3)]
    with ThreadPool(3) as pool:
        for made in (own, [shared] * 3):
            found = pool.starmap(run_session, [(made[s], caches(block), s) for s in range(3)])
            assert all(torch.equal(a, b) for one, other in zip(found, wanted, strict=True)
                       for a, b in zip(one, other, strict=True))


def test_other_threads_go_on_meanwhile(block: Operator, class_cache: Path) -> None:
    x, positions = next(steps(1, (3000,)))
    state = list(block.new_state(1, 3000).values())
    made, ticks, over = operation(block, class_cache), [0], threading.Event()
    made.execute([x, positions, *state])

    def count() -> None:
        while not over.is_set():
            ticks[0] += 1
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    before = ticks[0]
    for _ in range(5):
        made.execute([x, positions, *state])
    during = ticks[0] - before
    over.set()
    counter.join()
    assert during >= 5


@pytest.mark.usefixtures("threads")
def test_a_forked_child_runs_on_one_thread(block: Operator, class_cache: Path) -> None:
    torch.set_num_threads(2)
    wanted = run_session(operation(block, class_cache), caches(block))

    def work() -> bool:
        made = torch.classes.graphdsl.Operation("Block")
        return close(run_session(made, caches(block)), wanted)

    assert child_result(work) == 0


def test_compiled_once(class_cache: Path) -> None:
    environment = dict(os.environ)
    first = class_library(class_cache, environment)
    when = first.stat().st_mtime_ns
    assert class_library(class_cache, environment) == first
    assert first.stat().st_mtime_ns == when
    assert [p for p in first.parent.iterdir() if p != first] == []


def compiler_that(does: str, folder: Path) -> dict[str, str]:
    """An environment whose compiler has a version and otherwise does this."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\n{does}\n')
    script.chmod(0o755)
    return {**os.environ, "CXX": str(script)}


def test_compiler_failures(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"no C\+\+ compiler: No such file"):
        class_library(tmp_path, {**os.environ, "CXX": "/nowhere/g++"})
    with pytest.raises(ToolError, match=r"the C\+\+ compiler failed\n  command: .*torch_class"):
        class_library(tmp_path, compiler_that("exit 1", tmp_path))
    assert list((tmp_path / "torch_class").iterdir()) == []


WRITES = 'while [ "$1" != -o ]; do shift; done; echo "$2" > "$2"; sleep 1'
"""What it writes is different every time."""


def test_a_damaged_entry_is_not_taken(tmp_path: Path) -> None:
    environment = compiler_that(WRITES, tmp_path)
    whole = class_library(tmp_path, environment)
    assert class_library(tmp_path, environment) == whole
    whole.write_bytes(whole.read_bytes()[:10])
    assert class_library(tmp_path, environment) != whole


def test_two_processes_at_the_same_time(tmp_path: Path) -> None:
    environment = compiler_that(WRITES, tmp_path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = [pool.apply_async(class_library, (tmp_path, environment)) for _ in range(2)]
        found = {result.get(timeout=60) for result in results}
    assert class_library(tmp_path, environment) in found
    assert not list(tmp_path.glob("torch_class/.building-*"))


README = (Path(__file__).parents[2] / "README.md").read_text()


def test_what_readme_shows(class_cache: Path, tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    layer, python, doors = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:3]
    (tmp_path / "my_layer.py").write_text(layer)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GRAPHDSL_CACHE", str(class_cache))
    names: dict[str, Any] = {}
    exec(python, names)
    exec(doors, names)
    assert torch.equal(names["y"], names["operator"](names["x"]))
