"""Continuous batching: sequences of any length are decoded together, and come and go between
steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.hf.generate import budget_of, check_prompts
from graphdsl.hf.sampling import Sampling
from graphdsl.lazy import torch
from graphdsl.serve.beams import Beams
from graphdsl.serve.blocks import Blocks, Table
from graphdsl.serve.pool import PagedModel
from graphdsl.serve.requests import CANCELLED, FAILED, Request, Row, most_blocks
from graphdsl.serve.scheduler import Piece, Scheduler
from graphdsl.serve.writers import OneText, Writer

if TYPE_CHECKING:
    from torch import Tensor

MAX_BATCH, CHUNK = 16, 128


@dataclass(frozen=True)
class Event:
    """What a step brought to a request: new ids, and why it has ended, if it has."""

    request: Request
    ids: tuple[int, ...]
    reason: str


@dataclass
class Totals:
    """What an engine has done so far. Tokens of prompts count when they are computed; what was
    written counts as prompt when it is computed again."""

    steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0


class Engine:
    """Runs requests over one pool of `blocks` KV blocks, at most `max_batch` rows at once (a
    request has one, with beams as many as those), and at most `chunk` tokens of prompts between two
    steps of the others. `sampling` is that of requests that bring none; `tokenizer` gives what stop
    strings need.

    Every request gets the tokens that it would get alone, up to the rounding of sums in another
    order. Requests begin in the order in which they were added. Where blocks run out, the youngest
    waits and is computed again later. Methods may be called from any thread; they wait for a step
    that is under way. Raises GraphError for numbers that the engine or the model does not take.
    """

    def __init__(self, model: PagedModel, blocks: int, *, max_batch: int = MAX_BATCH,
                 chunk: int = CHUNK, sampling: Sampling | None = None,
                 tokenizer: Callable[[], Any] | None = None) -> None:
        for name, value in (("max_batch", max_batch), ("chunk", chunk), ("blocks", blocks)):
            if value < 1:
                raise GraphError(f"{name} is {value}; wanted: 1 or more")
        self.model = model
        self.pool = model.pool(blocks)
        self.blocks = Blocks(self.pool.blocks, self.pool.size)
        self.scheduler = Scheduler(self.blocks, self.pool.copy, max_batch, chunk)
        self.totals = Totals()
        self._sampling = sampling or Sampling(greedy=True)
        self._tokenizer = tokenizer
        self._lock = threading.RLock()
        self._count = 0
        self._done: list[Event] = []

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return bool(self._done or self.scheduler.waiting or self.scheduler.running)

    def add(self, prompt: Sequence[int], sampling: Sampling | None = None, *,
            seed: int | None = None, beams: int = 1) -> Request:
        """A request for a text behind `prompt`. What is sampled is drawn with a generator of this
        seed (None: torch's global one); `beams` above 1 is for the likeliest text.

        Raises GraphError for what `generate` refuses, and for a request that could never get all
        the blocks or rows that it may need.
        """
        chosen = sampling or self._sampling
        check_prompts(self.model, [prompt], chosen)
        if beams != 1:
            Beams.check(beams, chosen)
        budget = budget_of(self.model, len(prompt), chosen)
        need = most_blocks(len(prompt), max(budget, 1), beams, self.blocks.size)
        self._check_need(len(prompt), budget, beams, need)
        tokenizer = self._tokenizer() if self._tokenizer and chosen.stop_strings else None
        writer: Writer
        if beams == 1:
            writer = OneText.of(prompt, chosen, budget, seed, tokenizer)
        else:
            writer = Beams(beams, prompt, chosen, budget, tokenizer)
        row = Row(list(prompt), Table(self.blocks))
        with self._lock:
            request = self._numbered(tuple(prompt), writer, need, row)
            if budget:
                self.scheduler.wait(request)
            else:
                request.stopped = "length"
                self._done.append(Event(request, (), request.stopped))
        return request

    def _numbered(self, prompt: tuple[int, ...], writer: Writer, need: int, row: Row) -> Request:
        self._count += 1
        return Request(self._count, prompt, writer, need, [row])

    def _check_need(self, prompt: int, budget: int, beams: int, need: int) -> None:
        """Raises GraphError for what would never fit."""
        if beams > self.scheduler.width:
            raise GraphError(f"{beams} beams, but at most {self.scheduler.width} rows run at once",
                             hint="fewer beams, or a larger max_batch")
        if need > self.blocks.count:
            each = f" with {beams} beams" if beams > 1 else ""
            raise GraphError(f"a prompt of {prompt} tokens and {budget} new ones{each} takes up to "
                             f"{need} blocks of {self.blocks.size} slots, but the pool has "
                             f"{self.blocks.count}", hint="more blocks, or fewer new tokens")

    def fork(self, request: Request, seed: int | None = None) -> Request:
        """Another request that goes on from where this one is, on the same blocks, with a generator
        of its own. Raises GraphError for one that has ended or has beams."""
        with self._lock:
            writer = request.writer
            if request.reason or not isinstance(writer, OneText):
                what = "it has ended" if request.reason else "it has beams"
                raise GraphError(f"{request} cannot be forked: {what}")
            row = request.rows[0]
            runs = (request in self.scheduler.running
                    and self.scheduler.rows < self.scheduler.width)
            # Of a prompt under way blocks are not shared: both would write into them.
            shares = runs and row.left == 1
            made = Row([*row.tokens], row.table.fork() if shares else Table(self.blocks),
                       row.computed if shares else 0)
            other = self._numbered(request.prompt, writer.fork(seed), request.need, made)
            (self.scheduler.run if shares else self.scheduler.wait)(other)
            return other

    def cancel(self, request: Request) -> None:
        """Ends a request and frees its blocks; nothing happens to one that has ended."""
        with self._lock:
            if not request.reason:
                self._drop(request, CANCELLED)

    def _drop(self, request: Request, reason: str) -> None:
        request.stopped = reason
        self.scheduler.remove(request)

    def run(self) -> Iterator[Event]:
        """Steps until no request is under way; those added meanwhile are run too."""
        while self.busy:
            yield from self.step()

    def step(self) -> list[Event]:
        """One token for every row that runs, then at most `chunk` tokens of prompts.

        Raises GraphError for logits that are not numbers: their request has failed, the others go
        on with the next step.
        """
        with self._lock, torch.inference_mode():
            begin = time.perf_counter()
            events, self._done = self._done, []
            try:
                events += self._decode(self.scheduler.decoding())
                events += self._compute(self.scheduler.pieces())
            except GraphError:
                self._done = events  # of the others, which the next step tells
                raise
            self.totals.steps += 1
            self.totals.new_tokens += sum(len(event.ids) for event in events)
            self.totals.seconds += time.perf_counter() - begin
            return events

    def _decode(self, requests: Sequence[Request]) -> Iterator[Event]:
        """One token for every row of these requests."""
        rows = [row for request in requests for row in request.rows]
        if not rows:
            return
        logits = self._logits([(row, 1) for row in rows])
        at = 0
        for request in requests:
            end = at + len(request.rows)
            yield from self._written(request, logits[at:end])
            at = end

    def _compute(self, pieces: Sequence[Piece]) -> Iterator[Event]:
        """The next tokens of prompts; a request whose prompt ends with them gets its first one."""
        if not pieces:
            return
        logits = self._logits([(piece.row, piece.count) for piece in pieces])
        self.totals.prompt_tokens += sum(piece.count for piece in pieces)
        for i, piece in enumerate(pieces):
            if piece.count == piece.row.left:
                yield from self._written(piece.request, logits[i:i + 1])
            else:
                piece.row.computed += piece.count
                piece.row.table.name(piece.row.tokens[:piece.row.computed])

    def _logits(self, parts: Iterable[tuple[Row, int]]) -> Tensor:
        """f32 [rows, vocab] behind the next tokens of every row. Nothing of a row is changed, so
        that a step which fails is done again."""
        taken = [(row, range(row.computed, row.computed + count)) for row, count in parts]
        longest = max(len(part) for _, part in taken)
        ids = [[0] * (longest - len(part)) + row.tokens[part.start:part.stop]
               for row, part in taken]
        positions = [[-1] * (longest - len(part)) + list(part) for _, part in taken]
        return self.pool.step(torch.tensor(ids, dtype=torch.int64),
                              torch.tensor(positions, dtype=torch.int32),
                              [row.table.blocks for row, _ in taken])

    def _written(self, request: Request, logits: Tensor) -> Iterator[Event]:
        """What a request's writer makes of the logits of its rows, all of whose tokens are in the
        pool now."""
        for row in request.rows:
            row.computed = len(row.tokens)
            row.table.name(row.tokens)
        before = len(request.ids)
        try:
            moves = request.writer.write(logits)
        except GraphError:
            self._drop(request, FAILED)
            raise
        if moves:
            request.advance(moves)
        else:
            self.scheduler.remove(request)
        yield Event(request, request.ids[before:], request.reason)


__all__ = ["CHUNK", "MAX_BATCH", "Engine", "Event", "Totals"]
