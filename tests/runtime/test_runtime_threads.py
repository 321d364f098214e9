"""What threads and processes may share."""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch
from runtime_layers import (
    SECONDS,
    SLOTS,
    Block,
    built,
    child_result,
    close,
    opened,
    session,
    steps,
)

from graphdsl.runtime.operator import Operator


def equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_threads_with_states_of_their_own(block: Operator) -> None:
    seeds = range(4)
    wanted = [session(block, block.new_state(2, SLOTS), seed) for seed in seeds]
    with ThreadPool(len(seeds)) as pool:
        for _ in range(3):
            found = pool.map(lambda s: session(block, block.new_state(2, SLOTS), s), seeds)
            assert all(equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_other_threads_go_on_during_a_step(block: Operator) -> None:
    tokens = 3000
    x = torch.randn(1, tokens, 32)
    positions = torch.arange(tokens, dtype=torch.int32)[None]
    state, ticks, over = block.new_state(1, tokens), [0], threading.Event()
    block(x, positions, state=state)

    def count() -> None:
        while not over.is_set():
            ticks[0] += 1
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    tensors = (x, positions, *state.values(), torch.empty_like(x))
    addresses = [t.data_ptr() for t in tensors]
    plan = next(iter(block._plans.plans.values())).plan
    before = ticks[0]
    for _ in range(5):
        assert plan.step(addresses)
    during = ticks[0] - before
    over.set()
    counter.join()
    assert during >= 5


@pytest.mark.usefixtures("threads")
def test_thread_counts_of_torch_are_followed(block: Operator) -> None:
    results = {}
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        results[count] = session(block, block.new_state(2, SLOTS))
        assert {key[0] for key in block._plans.plans} >= {count}
    for found in results.values():
        for a, b in zip(found, results[1], strict=True):
            torch.testing.assert_close(a, b)


def test_new_threads_follow_torch_too(block: Operator, threads: None) -> None:
    torch.set_num_threads(3)
    counts: list[int] = []
    x, positions = next(steps())

    def call() -> None:
        block(x, positions, state=block.new_state(2, SLOTS))
        counts.extend(key[0] for key in block._plans.plans)

    worker = threading.Thread(target=call)
    worker.start()
    worker.join()
    assert counts == [3]


@pytest.mark.usefixtures("threads")
def test_a_forked_child_runs_on_one_thread(block: Operator, block_path: Path) -> None:
    torch.set_num_threads(2)
    wanted = session(block, block.new_state(2, SLOTS))

    def same_operator() -> bool:
        found = session(block, block.new_state(2, SLOTS))
        return {key[0] for key in block._plans.plans} == {1, 2} and close(found, wanted)

    def new_operator() -> bool:
        operator = opened(block_path)
        found = session(operator, operator.new_state(2, SLOTS))
        return {key[0] for key in operator._plans.plans} == {1} and close(found, wanted)

    assert child_result(same_operator) == 0
    assert child_result(new_operator) == 0
    assert equal(session(block, block.new_state(2, SLOTS)), wanted)


def run_session(operator: Operator) -> list[torch.Tensor]:
    """In a worker: all steps, copied so that nothing is shared."""
    return [y.numpy() for y in session(operator, operator.new_state(2, SLOTS))]


def test_spawned_workers_take_an_operator(block: Operator) -> None:
    wanted = session(block, block.new_state(2, SLOTS))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(run_session, (block,)).get(timeout=SECONDS * 2)
    assert equal([torch.from_numpy(y) for y in found], wanted)


def build_and_run(cache: Path) -> bool:
    """In a worker: the layer from the source to a result."""
    operator = opened(built(Block(), cache))
    return len(session(operator, operator.new_state(2, SLOTS))) == len(list(steps()))


def test_two_processes_build_at_the_same_time(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map_async(build_and_run, [tmp_path] * 2).get(timeout=SECONDS * 2) == [True] * 2
    assert not list(tmp_path.glob(".building-*"))
