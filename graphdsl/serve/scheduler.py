"""Which requests and which tokens the next step computes, and who waits when blocks run out."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from graphdsl.serve.blocks import Blocks, Copies, missing
from graphdsl.serve.requests import Request, Row, shared_pages

_number = attrgetter("number")


@dataclass(frozen=True)
class Piece:
    """The next `count` tokens of a prompt."""

    request: Request
    row: Row
    count: int


@dataclass(eq=False)
class Scheduler:
    """Requests by age: those that wait have no blocks. `copy` copies blocks at once, `width` is the
    most rows that may run, `chunk` the most tokens of prompts in a step, padding included.
    `put_back` counts how often a request had to wait again, `found` the tokens whose blocks were
    there already."""

    blocks: Blocks
    copy: Callable[[Copies], None]
    width: int
    chunk: int
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    put_back: int = 0
    found: int = 0

    @property
    def rows(self) -> int:
        """The rows of what runs, those that beams have yet to begin included."""
        return sum(request.writer.width for request in self.running)

    def run(self, request: Request) -> None:
        """Takes in a request that has blocks."""
        insort(self.running, request, key=_number)

    def wait(self, request: Request) -> None:
        """Takes in a request, or puts one back, that has none."""
        insort(self.waiting, request, key=_number)

    def remove(self, request: Request) -> None:
        """Forgets a request and frees its blocks."""
        (self.running if request in self.running else self.waiting).remove(request)
        for row in request.rows:
            row.put_back()

    def decoding(self) -> list[Request]:
        """The requests of which every row gets one token; their last slots are their own. Where
        blocks run out, the youngest request is put back."""
        chosen = []
        for request in list(self.running):
            if request in self.running and request.ready and self._make_room(request):
                copies = [pair for row in request.rows
                          for pair in row.table.grow(row.computed, len(row.tokens))]
                if copies:
                    self.copy(copies)
                chosen.append(request)
        return chosen

    def _make_room(self, request: Request) -> bool:
        """Frees blocks of the youngest until a request can go on, if it is not itself put back."""
        tables, row = [row.table for row in request.rows], request.rows[0]
        while missing(tables, row.computed, len(row.tokens)) > self.blocks.free:
            youngest = self.running[-1]
            self.remove(youngest)
            self.wait(youngest)
            self.put_back += 1
            if youngest is request:
                return False
        return True

    def pieces(self) -> list[Piece]:
        """Of the prompts that are not computed, as many tokens as fit: first those of requests
        that run, then of others, which begin by this."""
        under_way = [(request, row) for request in self.running if (row := request.next_row())]
        while sum(row.left for _, row in under_way) < self.chunk and self.waiting:
            request = self.waiting[0]
            if not self._begin(request):
                break
            row = request.next_row()
            if row:
                under_way.append((request, row))
        counts = _split([request.most(row) for request, row in under_way], self.chunk)
        return [Piece(request, row, count)
                for (request, row), count in zip(under_way, counts, strict=True) if count]

    def _begin(self, request: Request) -> bool:
        """Gives a waiting request the blocks of all its tokens, if there are enough: one for every
        row that runs has to be left. Rows of one request share what they begin alike with, each
        with one before it, which is computed first."""
        if self.rows + request.writer.width > self.width:
            return False
        size, first = self.blocks.size, request.rows[0]
        first.computed = first.table.adopt(first.tokens)
        homes = [_home(request.rows[:i], row, size) for i, row in enumerate(request.rows)]
        need = sum(-(-len(row.tokens) // size) - pages
                   for row, (_, pages) in zip(request.rows[1:], homes[1:], strict=True))
        need += missing([first.table], first.computed, len(first.tokens))
        spare = sum(len(other.rows) for other in self.running)
        if need + spare > self.blocks.free:
            first.put_back()
            return False
        for row, (home, pages) in zip(request.rows, homes, strict=True):
            if home is not None:
                row.table, row.computed = home.table.fork(pages), pages * size
            row.table.grow(row.computed, len(row.tokens))
        self.found += first.computed
        self.waiting.remove(request)
        self.run(request)
        return True


def _home(before: Sequence[Row], row: Row, size: int) -> tuple[Row | None, int]:
    """The row before this one that it shares most full blocks with, and how many."""
    shared = [(shared_pages(row.tokens, other.tokens, size), i) for i, other in enumerate(before)]
    pages, at = max(shared, default=(0, -1))
    return (before[at], pages) if pages else (None, 0)


def _split(lefts: Sequence[int], chunk: int) -> list[int]:
    """How many of the tokens that each has left a step takes. Its rows are padded to the longest
    and are at most `chunk` tokens then. The first is always among them, and with it those that
    bring the most tokens."""
    best: list[int] = [0] * len(lefts)
    order = sorted(range(1, len(lefts)), key=lambda i: -lefts[i])
    for rows in range(1, min(len(lefts), chunk) + 1):
        chosen = {0, *order[:rows - 1]}
        counts = [min(left, chunk // rows) if i in chosen else 0 for i, left in enumerate(lefts)]
        best = max(best, counts, key=sum)
    return best


__all__ = ["Piece", "Scheduler"]
