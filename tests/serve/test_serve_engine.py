"""What an engine promises, on a model that sees every mistake with its blocks."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from toymodel import ToyModel, ToyPool, check_blocks

from graphdsl.errors import GraphError
from graphdsl.hf.generate import collect, generate
from graphdsl.hf.sampling import Sampling
from graphdsl.serve.engine import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = Sampling(10, greedy=True)
START = [1, 2, 3, 4, 5, 6, 7, 8]


def alone(prompt: list[int], sampling: Sampling = GREEDY) -> tuple[int, ...]:
    return collect([prompt], generate(ToyModel(), [prompt], sampling)).ids[0]


def test_a_long_prompt_holds_nobody_up() -> None:
    engine = Engine(ToyModel(), 60, chunk=6)
    short = engine.add([3, 4], Sampling(12, greedy=True))
    engine.step()
    long = engine.add(list(range(36)), GREEDY)
    for done in range(1, 6):
        engine.step()
        assert len(short.ids) == 1 + done
        assert long.rows[0].computed == 6 * done
    engine.step()
    assert len(long.ids) == 1
    list(engine.run())
    assert long.ids == alone(list(range(36)))


def test_who_waits_enters_when_somebody_leaves() -> None:
    engine = Engine(ToyModel(), 60, max_batch=2)
    requests = [engine.add([i], Sampling(length, greedy=True))
                for i, length in enumerate((2, 9, 5))]
    assert not any(event.request is requests[2] for _ in range(2) for event in engine.step())
    list(engine.run())
    assert [len(request.ids) for request in requests] == [2, 9, 5]
    assert {request.reason for request in requests} == {"length"}


def test_blocks_of_equal_beginnings_are_shared_and_kept() -> None:
    engine = Engine(ToyModel(size=4), 8)
    first = engine.add([*START, 9], GREEDY)
    engine.step()
    second = engine.add([*START, 10, 11], GREEDY)
    engine.step()
    assert first.rows[0].table.blocks[:2] == second.rows[0].table.blocks[:2]
    assert (engine.scheduler.found, engine.blocks.free) == (8, 8 - 4)
    check_blocks(engine)
    list(engine.run())
    assert (engine.blocks.free, first.ids, second.ids) == (8, alone([*START, 9]),
                                                           alone([*START, 10, 11]))
    again = engine.add([*START, 9], GREEDY)
    list(engine.run())
    assert engine.scheduler.found >= 16
    assert again.ids == first.ids


def test_the_youngest_waits_when_blocks_run_out() -> None:
    engine = Engine(ToyModel(size=2), 12, max_batch=3)
    requests = [engine.add([i, i], Sampling(14, greedy=True)) for i in range(3)]
    ended = [event.request for event in engine.run() if event.reason]
    assert ended == requests
    assert engine.scheduler.put_back > 0
    for i, request in enumerate(requests):
        assert request.ids == alone([i, i], Sampling(14, greedy=True))


def test_cancelled_at_any_moment() -> None:
    for steps in range(8):
        engine = Engine(ToyModel(), 40, chunk=5, max_batch=3)
        other = engine.add([5], GREEDY)
        requests = [engine.add([*START, 9], GREEDY), engine.add(START, GREEDY, beams=2)]
        for _ in range(steps):
            engine.step()
        for request in requests:
            engine.cancel(request)
            check_blocks(engine)
            assert request.reason == "cancelled"
            engine.cancel(request)
        list(engine.run())
        assert (other.ids, engine.blocks.free) == (alone([5]), 40)


def test_cancelled_by_another_thread() -> None:
    engine = Engine(ToyModel(max_positions=600), 300)
    request = engine.add([1], Sampling(500, greedy=True))
    canceller = threading.Thread(target=engine.cancel, args=(request,))
    for _ in engine.run():
        if len(request.ids) == 3:
            canceller.start()
            canceller.join()
    assert (request.reason, engine.blocks.free, len(request.ids)) == ("cancelled", 300, 3)


def test_forks_go_on_from_the_same_blocks() -> None:
    sampling = Sampling(12)
    engine = Engine(ToyModel(size=4), 40)
    request = engine.add(START, sampling, seed=1)
    for _ in range(4):
        engine.step()
    sofar, used = request.ids, 40 - engine.blocks.free
    fork = engine.fork(request, seed=2)
    assert 40 - engine.blocks.free == used
    check_blocks(engine)
    list(engine.run())
    assert isinstance(engine.pool, ToyPool)
    assert engine.pool.copied == 1
    assert fork.ids[:len(sofar)] == sofar
    assert fork.ids != request.ids
    with pytest.raises(GraphError, match="cannot be forked: it has ended"):
        engine.fork(request)
    with pytest.raises(GraphError, match="cannot be forked: it has beams"):
        engine.fork(engine.add(START, GREEDY, beams=2))


class DamagedPool(ToyPool):
    """NaN behind token 13."""

    def step(self, ids: torch.Tensor, positions: torch.Tensor,
             tables: Sequence[Sequence[int]]) -> torch.Tensor:
        logits = super().step(ids, positions, tables)
        for row, table, last in zip(logits, tables, positions[:, -1].tolist(), strict=True):
            if 13 in self.read(table, last + 1):
                row.fill_(float("nan"))
        return logits


class DamagedModel(ToyModel):
    def pool(self, blocks: int) -> ToyPool:
        return DamagedPool(self.vocab, blocks, self.size)


def test_a_request_without_numbers_fails_alone() -> None:
    engine = Engine(DamagedModel(), 40)
    good = engine.add([1, 2], Sampling(3, greedy=True))
    bad = engine.add([13], GREEDY)
    after = engine.add([2, 3], Sampling(3, greedy=True))
    with pytest.raises(GraphError, match="not numbers"):
        list(engine.run())
    assert bad.reason == "failed"
    list(engine.run())
    assert good.ids == alone([1, 2], Sampling(3, greedy=True))
    assert after.ids == alone([2, 3], Sampling(3, greedy=True))
    assert engine.blocks.free == 40


def test_no_new_token_at_all() -> None:
    engine = Engine(ToyModel(), 40)
    request = engine.add(START, Sampling(0, greedy=True))
    [event] = engine.run()
    assert (event.request, event.ids, event.reason) == (request, (), "length")


@pytest.mark.parametrize(("prompt", "sampling", "message"), [
    ([], GREEDY, "the prompt is empty"),
    ([40], GREEDY, "token id 40 in the prompt; wanted: 0 to 36"),
    ([1] * 61, GREEDY, "the prompt has 61 tokens; the model takes at most 60"),
    ([1], Sampling(9, eos=(99,)), "token id is 99"),
    ([1], Sampling(9, stop_strings=("x",)), "stop strings need a tokenizer"),
    ([1] * 30, GREEDY, "a prompt of 30 tokens and 10 new ones takes up to 10 blocks of 4 slots, "
                       "but the pool has 9"),
])
def test_refused_requests(prompt: list[int], sampling: Sampling, message: str) -> None:
    engine = Engine(ToyModel(), 9)
    with pytest.raises(GraphError, match=message):
        engine.add(prompt, sampling)
    assert not engine.busy
