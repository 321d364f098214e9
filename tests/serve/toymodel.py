"""A model whose logits are a pure function of the tokens that it finds in its blocks: whoever reads
a block of somebody else, or one that was not copied, is given other logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from graphdsl.serve.engine import Engine

NOTHING = -1


def logits_of(tokens: Sequence[int], vocab: int) -> torch.Tensor:
    """f32 [vocab], different for every sequence."""
    state = 17
    for token in tokens:
        state = (state * 1_000_003 + token + 1) % (1 << 61)
    mixed = torch.arange(1, vocab + 1) * (state % 1_000_033 + 1) % 7919
    return mixed.float() / 1000


@dataclass
class ToyPool:
    """Tokens in blocks. `copied` counts the copies."""

    vocab: int
    blocks: int
    size: int
    copied: int = 0
    memory: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = [[NOTHING] * self.size for _ in range(self.blocks)]

    def step(self, ids: torch.Tensor, positions: torch.Tensor,
             tables: Sequence[Sequence[int]]) -> torch.Tensor:
        assert ids.dtype == torch.int64
        assert positions.dtype == torch.int32
        assert ids.shape == positions.shape
        writers: Counter[int] = Counter()
        for row, places, table in zip(ids.tolist(), positions.tolist(), tables, strict=True):
            real = [(p, token) for p, token in zip(places, row, strict=True) if p >= 0]
            assert [p for p, _ in real] == list(range(real[0][0], real[0][0] + len(real)))
            writers.update({table[p // self.size] for p, _ in real})
            for p, token in real:
                self.memory[table[p // self.size]][p % self.size] = token
        assert set(writers.values()) == {1}, "two rows write into one block"
        return torch.stack([logits_of(self.read(table, places[-1] + 1), self.vocab)
                            for table, places in zip(tables, positions.tolist(), strict=True)])

    def read(self, table: Sequence[int], length: int) -> list[int]:
        found = [self.memory[table[p // self.size]][p % self.size] for p in range(length)]
        assert NOTHING not in found
        return found

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        assert len({target for _, target in copies}) == len(copies)
        self.copied += len(copies)
        before = [list(self.memory[source]) for source, _ in copies]
        for (_, target), slots in zip(copies, before, strict=True):
            self.memory[target] = slots


@dataclass
class ToySession:
    """A Session without blocks."""

    vocab: int
    tokens: list[int] = field(default_factory=list)

    def step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert int(positions.min()) == len(self.tokens)
        self.tokens += ids[0].tolist()
        return logits_of(self.tokens, self.vocab)[None]


@dataclass(frozen=True)
class ToyModel:
    """Both a PagedModel and a StepModel, of one row."""

    size: int = 4
    vocab: int = 37
    max_positions: int = 60

    def pool(self, blocks: int) -> ToyPool:
        return ToyPool(self.vocab, blocks, self.size)

    def start(self, batch: int, capacity: int) -> ToySession:
        assert batch == 1
        assert capacity <= self.max_positions
        return ToySession(self.vocab)


def check_blocks(engine: Engine) -> None:
    """Every block is held by as many rows as is written down; the others are free."""
    blocks = engine.blocks
    held = Counter(block for request in engine.scheduler.running for row in request.rows
                   for block in row.table.blocks)
    assert [blocks.holders(b) for b in range(blocks.count)] == [held[b] for b in
                                                                range(blocks.count)]
    assert blocks.free == blocks.count - len(held)
    assert not any(row.table.blocks or row.computed for request in engine.scheduler.waiting
                   for row in request.rows)
    assert engine.scheduler.rows <= engine.scheduler.width
    for request in engine.scheduler.running:
        assert request.need <= blocks.count
        for row in request.rows:
            assert len(row.table.blocks) <= -(-len(row.tokens) // blocks.size)
