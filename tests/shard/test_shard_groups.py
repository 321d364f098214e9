"""A process group as a rank's collectives call it, and what is refused of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed

from graphdsl.commands.parallel import joined, passes_of
from graphdsl.commands.session import Launch
from graphdsl.errors import GraphError, ToolError
from graphdsl.runtime.group import SUM, Group, check_group, tensor_at

GATHER = 1
F32, BF16 = 0, 1


@pytest.fixture
def alone() -> Iterator[Group]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0,
                                         world_size=1)
    yield Group()
    torch.distributed.destroy_process_group()


def of(rank: int, ranks: int) -> Group:
    """A group that nobody calls."""
    made = object.__new__(Group)
    made.rank, made.ranks = rank, ranks
    return made


def test_exchanges_of_addresses(alone: Group) -> None:
    for dtype, code in ((torch.float32, F32), (torch.bfloat16, BF16)):
        x = torch.arange(6).to(dtype)
        y = torch.zeros_like(x)
        alone.exchange(SUM, code, x.data_ptr(), y.data_ptr(), 1, 6)
        assert torch.equal(x, y)
        alone.exchange(SUM, code, x.data_ptr(), x.data_ptr(), 1, 6)
        assert torch.equal(x, y)
        for outer, inner in ((1, 6), (2, 3)):
            y = torch.zeros_like(x)
            alone.exchange(GATHER, code, x.data_ptr(), y.data_ptr(), outer, inner)
            assert torch.equal(x, y)
    alone.ready()
    assert alone.agreed(7) == 7
    assert repr(alone) == "Group(rank 0 of 1)"


def test_an_exchange_that_fails_names_the_rank(alone: Group,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer\nmore")

    x = torch.ones(2)
    for name in ("all_reduce", "all_gather", "monitored_barrier", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, closed)
    calls = (lambda: alone.exchange(SUM, F32, x.data_ptr(), x.data_ptr(), 1, 2),
             lambda: alone.exchange(GATHER, F32, x.data_ptr(), x.data_ptr(), 1, 2),
             alone.ready, lambda: alone.agreed(1))
    for call in calls:
        with pytest.raises(ToolError, match="rank 0: another of the 1 ranks has ended") as caught:
            call()
        assert "Connection closed by peer" in str(caught.value)
        assert "more" not in str(caught.value)


def test_memory_at_an_address() -> None:
    x = torch.arange(4.0)
    seen = tensor_at(x.data_ptr(), "f32", 4)
    seen[1] = 9
    assert x[1] == 9
    assert tensor_at(0, "f32", 0).numel() == 0


def test_no_process_group() -> None:
    with pytest.raises(GraphError, match=r"torch.distributed has no process group") as caught:
        Group()
    assert "init_process_group" in caught.value.hint


@pytest.mark.parametrize(("built", "group", "message"), [
    (None, of(0, 2), "was built for one process"),
    ({"rank": 1, "ranks": 2}, None, "rank 1 of 2, and no process group is given"),
    ({"rank": 1, "ranks": 2}, of(0, 2), "rank 1 of 2, and this process is rank 0 of 2"),
    ({"rank": 1, "ranks": 2}, of(1, 3), "rank 1 of 2, and this process is rank 1 of 3"),
])
def test_builds_for_another_rank(built: dict[str, int] | None, group: Group | None,
                                 message: str) -> None:
    with pytest.raises(GraphError, match=message):
        check_group(Path("build"), built, group)


def test_builds_for_this_rank() -> None:
    check_group(Path("build"), None, None)
    check_group(Path("build"), None, of(0, 1))
    check_group(Path("build"), {"rank": 1, "ranks": 2}, of(1, 2))


def test_options_of_shard_are_its_own() -> None:
    own = {"shard": {"rank": "1", "ranks": "2"}}
    assert passes_of({}, of(1, 2)) == own
    with pytest.raises(GraphError, match="--pass shard and --tensor-parallel are both given"):
        passes_of(own, of(1, 2))


def test_one_process_joins_nobody() -> None:
    for launch in (None, Launch(0, 1, "localhost", 29500)):
        with joined(launch) as group:
            assert group is None


def test_ranks_that_do_not_find_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise RuntimeError("The client socket has timed out")

    monkeypatch.setattr(torch.distributed, "init_process_group", nobody)
    nowhere = Launch(1, 2, "127.0.0.1", 1)
    with pytest.raises(ToolError, match="rank 1: the 2 ranks do not find one another"), \
            joined(nowhere):
        raise AssertionError("nobody is there")
