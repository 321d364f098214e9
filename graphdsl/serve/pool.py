"""What an engine drives: a model with a pool of KV blocks, and the one of a built operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from graphdsl.errors import GraphError
from graphdsl.layout import TABLE
from graphdsl.lazy import torch
from graphdsl.runtime.ports import Port

if TYPE_CHECKING:
    from torch import Tensor

    from graphdsl.runtime.operator import Operator, State


class Pool(Protocol):
    """KV blocks of a model, and steps over the sequences that lie in them."""

    @property
    def blocks(self) -> int: ...

    @property
    def size(self) -> int:
        """The slots of a block."""
        ...

    def step(self, ids: Tensor, positions: Tensor, tables: Sequence[Sequence[int]]) -> Tensor:
        """The logits after the last id of every row: f32 [rows, vocab], overwritten by the next
        step. ids: i64 [rows, tokens]; positions: i32 of the same shape, -1 where an id is padding
        on the left; tables: the blocks of every row, those of its new tokens among them."""
        ...

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copies blocks, in all layers: (from, to). No block is written twice."""
        ...


class PagedModel(Protocol):
    """A model that an engine can drive."""

    @property
    def vocab(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    def pool(self, blocks: int) -> Pool:
        """A new pool. Raises GraphError for more blocks than there can be."""
        ...


class OperatorPool:
    """The pools of all KV states of an operator. Those of one shape are one tensor with an axis for
    the states in front, so that a block is copied in all of them at once."""

    def __init__(self, operator: Operator, blocks: int) -> None:
        self.blocks, self.size = blocks, operator.block
        self._operator = operator
        self._wholes: list[tuple[Tensor, int]] = []
        self._state: State = {}
        self._check(blocks)
        self._table = next(port for port in operator.state if port.name == TABLE)
        kinds: dict[tuple[object, ...], list[Port]] = {}
        for port in (port for port in operator.state if port.layout):
            sizes = port.sizes({"batch": 1, "blocks": blocks})
            kinds.setdefault((port.dtype, port.layout, *sizes), []).append(port)
        for ports in kinds.values():
            self._add(ports)

    def _check(self, blocks: int) -> None:
        """Raises GraphError for a number of blocks that the operator does not take."""
        name = self._operator.name
        if not self.size:
            raise GraphError(f"{name}: its KV caches are not paged",
                             hint="--pass kv_layout:policy=paged")
        most = next(dim.hi for dim in self._operator.dims if dim.name == "blocks")
        if not 1 <= blocks <= most:
            raise GraphError(f"{name}: a pool of {blocks} blocks; wanted: 1 to {most}")

    def _add(self, ports: Sequence[Port]) -> None:
        sizes = ports[0].sizes({"batch": 1, "blocks": self.blocks})
        try:
            whole = torch.zeros(len(ports), *sizes, dtype=ports[0].dtype,
                                device=self._operator.device.current())
        except RuntimeError:
            raise GraphError(f"{self._operator.name}: no memory for a pool of {self.blocks} "
                             "blocks", hint="--blocks takes fewer") from None
        layout = ports[0].layout
        assert layout is not None
        self._wholes.append((whole, 0 if layout.storage == "nz" else layout.order.index("b")))
        self._state.update((port.name, whole[i]) for i, port in enumerate(ports))

    def step(self, ids: Tensor, positions: Tensor, tables: Sequence[Sequence[int]]) -> Tensor:
        """f32 [rows, vocab], as `Pool` says."""
        # A plan is made for every number of pages: of powers of two there are few.
        pages = 1 << (max(map(len, tables)) - 1).bit_length()
        table = torch.tensor([[*row, *[-1] * (pages - len(row))] for row in tables],
                             dtype=torch.int32)
        rows = torch.full((len(tables), 1), ids.shape[1] - 1, dtype=torch.int32)
        logits: Tensor = self._operator(
            ids.int().contiguous(), positions.contiguous(), rows,
            state={**self._state, TABLE: table.to(self._table.device)})
        return logits[:, 0].to("cpu")

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copies blocks in the pools of all layers."""
        for whole, axis in self._wholes:
            source, target = torch.tensor(copies, device=whole.device).T
            whole.index_copy_(axis + 1, target, whole.index_select(axis + 1, source))


__all__ = ["OperatorPool", "PagedModel", "Pool"]
