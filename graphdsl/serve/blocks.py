"""Who holds which block of a pool: reference counts, copy on write, and blocks found by content.

Nothing here touches a tensor. What always holds:
- a block is either free (nobody holds it) or held by as many tables as its count says;
- a block that is written has one holder and no key;
- a key names at most one block, whose slots hold just the tokens that the key was made of, behind
  just the tokens before them; a free block keeps its key until it is given out again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Copies = list[tuple[int, int]]
"""Blocks to be copied before a step: from, to."""


class Blocks:
    """The blocks 0 to count - 1 of a pool, each of `size` slots."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._holders = [0] * count
        self._fresh = list(reversed(range(count)))
        self._idle: OrderedDict[int, None] = OrderedDict()  # free with a key; oldest first
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._fresh) + len(self._idle)

    def holders(self, block: int) -> int:
        """How many tables hold it."""
        return self._holders[block]

    def take(self) -> int:
        """A free block, held once: one without a key, or the one that has been free longest."""
        if self._fresh:
            block = self._fresh.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        assert self._holders[block] == 0, block
        self._holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One holder more, of a block in use or of a free one with a key."""
        if not self._holders[block]:
            del self._idle[block]
        self._holders[block] += 1

    def release(self, block: int) -> None:
        """One holder less; after the last one the block is free."""
        assert self._holders[block] > 0, block
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._key_of:
            self._idle[block] = None
        else:
            self._fresh.append(block)

    def find(self, key: bytes) -> int | None:
        """The block of this key."""
        return self._block_of.get(key)

    def name(self, block: int, key: bytes) -> None:
        """Gives a full block its key, unless another block has it already."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key], self._key_of[block] = block, key


def keys_of(tokens: Sequence[int], size: int, before: Sequence[bytes] = ()) -> Iterator[bytes]:
    """The keys of the full blocks of `tokens` behind the first ones, whose keys are `before`. A key
    is a hash of the block's tokens and of the key before it."""
    last = before[-1] if before else b""
    for start in range(len(before) * size, len(tokens) - size + 1, size):
        piece = array("q", tokens[start:start + size]).tobytes()
        last = hashlib.sha256(last + piece).digest()
        yield last


@dataclass(eq=False)
class Table:
    """The blocks of one sequence, slots [i * size, (i + 1) * size) in the i-th."""

    pool: Blocks
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    def adopt(self, tokens: Sequence[int]) -> int:
        """Holds the blocks that have the first of `tokens` already; the last token is always left
        to be computed. Gives the number of slots found. The table has to be empty."""
        assert not self.blocks
        for key in keys_of(tokens[:-1], self.pool.size):
            block = self.pool.find(key)
            if block is None:
                break
            self.pool.hold(block)
            self.blocks.append(block)
            self.keys.append(key)
        return len(self.blocks) * self.pool.size

    def _shared(self, start: int, last: int) -> list[int]:
        """The pages from that of slot `start` on, below `last`, that others hold too."""
        pages = range(start // self.pool.size, min(last, len(self.blocks)))
        return [page for page in pages if self.pool.holders(self.blocks[page]) > 1]

    def grow(self, start: int, end: int) -> Copies:
        """Makes slots start to end - 1 this table's own. Gives the blocks to be copied first; as
        many blocks as `missing` says of it have to be free."""
        last = -(-end // self.pool.size)
        copies = []
        for page in self._shared(start, last):
            own = self.pool.take()
            copies.append((self.blocks[page], own))
            self.pool.release(self.blocks[page])
            self.blocks[page] = own
        while len(self.blocks) < last:
            self.blocks.append(self.pool.take())
        return copies

    def name(self, tokens: Sequence[int]) -> None:
        """Gives keys to the blocks that `tokens` have filled, which lie in the pool by now."""
        for key in keys_of(tokens, self.pool.size, self.keys):
            self.pool.name(self.blocks[len(self.keys)], key)
            self.keys.append(key)

    def fork(self, pages: int | None = None) -> Table:
        """Another table with the same blocks, or with the first `pages` of them."""
        blocks = self.blocks[:pages]
        for block in blocks:
            self.pool.hold(block)
        return Table(self.pool, blocks, self.keys[:pages])

    def clear(self) -> None:
        """Lets go of all blocks, the last one first: of a chain the end is given out first."""
        for block in reversed(self.blocks):
            self.pool.release(block)
        self.blocks, self.keys = [], []


def missing(tables: Sequence[Table], start: int, end: int) -> int:
    """How many free blocks it takes for all these tables of one pool to grow. Of those that share a
    block with nobody else, the last one keeps it."""
    if not tables:
        return 0
    pool = tables[0].pool
    last = -(-end // pool.size)
    fresh = sum(max(last - len(table.blocks), 0) for table in tables)
    pages = slice(start // pool.size, last)
    written = Counter(block for table in tables for block in table.blocks[pages])
    return fresh + sum(n - (pool.holders(block) == n) for block, n in written.items())
