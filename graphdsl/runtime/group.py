"""The processes of a tensor-parallel run: what a rank's collectives call.

A Group wraps a process group of torch.distributed; gloo's does for tensors on the host. Every rank
has to make the same calls in the same order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError, ToolError
from graphdsl.lazy import torch, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

SUM = 0
"""The kind of an exchange that adds up; any other gathers. As in abi.h, and so are the dtypes."""
DTYPES = ("f32", "bf16", "f16")
READY_TIMEOUT = timedelta(minutes=20)
"""How long a rank waits for the others to have built and read their weights."""


class Group:
    """One rank of a process group of torch.distributed (None: the default one)."""

    def __init__(self, group: Any = None) -> None:
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            raise GraphError("torch.distributed has no process group",
                             hint="torch.distributed.init_process_group(\"gloo\") comes first")
        self.group = group
        self.rank = torch.distributed.get_rank(group)
        self.ranks = torch.distributed.get_world_size(group)
        if self.rank < 0:
            raise GraphError("this process is not in the group",
                             hint="give a group of torch.distributed that has this rank")

    def __repr__(self) -> str:
        return f"Group(rank {self.rank} of {self.ranks})"

    def exchange(self, kind: int, dtype: int, source: int, target: int, outer: int,
                 inner: int) -> None:
        """One collective between addresses, as gdsl_exchange in abi.h says. Numbers of 16 bits are
        added up in f32 and rounded once. Raises ToolError where another rank has ended or does not
        answer in time."""
        name = DTYPES[dtype]
        x = tensor_at(source, name, outer * inner)
        try:
            if kind == SUM:
                y = tensor_at(target, name, outer * inner)
                self._sum(x, y)
            else:
                y = tensor_at(target, name, outer * inner * self.ranks)
                self._gather(x.view(outer, inner), y.view(outer, self.ranks, inner))
        except RuntimeError as error:  # gloo's, whose first line says what it saw
            raise self._lost(error) from None

    def _sum(self, x: Tensor, y: Tensor) -> None:
        if x.dtype == torch.float32:
            if x.data_ptr() != y.data_ptr():
                y.copy_(x)
            torch.distributed.all_reduce(y, group=self.group)
            return
        wide = x.float()
        torch.distributed.all_reduce(wide, group=self.group)
        y.copy_(wide)

    def _gather(self, x: Tensor, y: Tensor) -> None:
        """x[outer, inner] of every rank into y[outer, ranks, inner]; rows of one come straight
        there."""
        if x.shape[0] == 1:
            torch.distributed.all_gather(list(y[0].unbind(0)), x[0], group=self.group)
            return
        parts = [torch.empty_like(x) for _ in range(self.ranks)]
        torch.distributed.all_gather(parts, x, group=self.group)
        for rank, part in enumerate(parts):
            y[:, rank] = part

    def ready(self) -> None:
        """Waits until every rank is here. Raises ToolError where one has ended."""
        try:
            torch.distributed.monitored_barrier(self.group, timeout=READY_TIMEOUT)
        except RuntimeError as error:
            raise self._lost(error) from None

    def agreed(self, number: int) -> int:
        """The number of rank 0."""
        told = torch.tensor([number])
        try:
            torch.distributed.broadcast(told, group=self.group, group_src=0)
        except RuntimeError as error:
            raise self._lost(error) from None
        return int(told)

    def _lost(self, error: RuntimeError) -> ToolError:
        first = str(error).partition("\n")[0]
        return ToolError(f"rank {self.rank}: another of the {self.ranks} ranks has ended or does "
                         "not answer, so the run ends here", output=first)


def check_group(path: Path, wanted: Mapping[str, int] | None, group: Group | None) -> None:
    """Raises GraphError where a build is for another rank than this process is."""
    if wanted is None and (group is None or group.ranks == 1):
        return
    if wanted is None:
        raise GraphError(f"{path} was built for one process", hint="leave tensor_parallel out")
    built = f"{path} was built for rank {wanted['rank']} of {wanted['ranks']}"
    if group is None:
        raise GraphError(f"{built}, and no process group is given",
                         hint="graphdsl.load(path, tensor_parallel=group)")
    if (group.rank, group.ranks) != (wanted["rank"], wanted["ranks"]):
        raise GraphError(f"{built}, and this process is rank {group.rank} of {group.ranks}",
                         hint="every rank has a build of its own")


def tensor_at(address: int, dtype: str, count: int) -> Tensor:
    """`count` numbers of the host's memory, not copied."""
    kind = torch_dtype(dtype)
    if not count:
        return torch.empty(0, dtype=kind)
    memory = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=kind)


__all__ = ["Group", "check_group", "tensor_at"]
