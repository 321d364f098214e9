"""--tensor-parallel: this process as one rank of those that torchrun has started."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

from graphdsl.commands.session import Launch
from graphdsl.errors import GraphError, ToolError
from graphdsl.lazy import torch

if TYPE_CHECKING:
    from graphdsl.runtime.group import Group

TIMEOUT = timedelta(seconds=45)
"""How long a rank waits in a collective for one that does not answer."""
MEETING = timedelta(minutes=2)
"""How long the ranks wait for one another to start."""


def check_launch(ranks: int, launch: Launch | None) -> None:
    """Raises GraphError, with the command to type, where this is not one of `ranks` processes."""
    hint = (f"torchrun --nproc-per-node {ranks} -m graphdsl generate MODEL ... "
            f"--tensor-parallel {ranks}")
    if ranks > 1 and launch is None:
        raise GraphError(f"--tensor-parallel {ranks} takes {ranks} processes, and this is one",
                         hint=hint)
    if launch is not None and launch.ranks != ranks:
        raise GraphError(f"--tensor-parallel {ranks}, but torchrun has started {launch.ranks} "
                         "processes", hint=hint)


def passes_of(passes: Mapping[str, Mapping[str, str]], group: Group | None,
              ) -> dict[str, Mapping[str, str]]:
    """The options of passes with those of `shard` for this rank. Raises GraphError where those are
    given too."""
    if group is None:
        return dict(passes)
    if "shard" in passes:
        raise GraphError("--pass shard and --tensor-parallel are both given",
                         hint="leave --pass shard out")
    return {**passes, "shard": {"rank": str(group.rank), "ranks": str(group.ranks)}}


@contextmanager
def joined(launch: Launch | None) -> Iterator[Group | None]:
    """The group of all ranks, or None for a process by itself. Raises ToolError where they do not
    find one another, and where torchrun ends this one."""
    from graphdsl.runtime.group import Group

    if launch is None or launch.ranks == 1:
        yield None
        return
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://{launch.address}:{launch.port}", rank=launch.rank,
            world_size=launch.ranks, timeout=MEETING)
        every = torch.distributed.new_group(timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ToolError(f"rank {launch.rank}: the {launch.ranks} ranks do not find one another at "
                        f"{launch.address}:{launch.port}", output=str(error)) from None
    with _told_to_end(launch):
        yield Group(every)
    torch.distributed.destroy_process_group()


@contextmanager
def _told_to_end(launch: Launch) -> Iterator[None]:
    """Turns SIGTERM into a ToolError for a while: torchrun sends it to the other ranks when one has
    ended, maybe before they have seen that themselves."""
    def end(signum: int, frame: FrameType | None) -> None:
        raise ToolError(f"rank {launch.rank}: told to end; another of the {launch.ranks} ranks has "
                        "ended or does not answer, or torchrun was stopped")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["check_launch", "joined", "passes_of"]
