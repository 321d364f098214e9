"""What an engine was asked for, and the rows that a request has in its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphdsl.serve.blocks import Table
from graphdsl.serve.writers import Moves, Writer

CANCELLED, FAILED = "cancelled", "failed"


@dataclass(eq=False)
class Row:
    """A sequence: its tokens, of which the first `computed` have keys and values in the pool."""

    tokens: list[int]
    table: Table
    computed: int = 0

    @property
    def left(self) -> int:
        """How many tokens are not computed; the last one of them gives the next logits."""
        return len(self.tokens) - self.computed

    def move(self, token: int) -> Row:
        """The sequence with one token more, on the same blocks."""
        return Row([*self.tokens, token], self.table.fork(), self.computed)

    def put_back(self) -> None:
        """Lets go of all blocks, so that everything has to be computed again."""
        self.table.clear()
        self.computed = 0


@dataclass(eq=False)
class Request:
    """A prompt and what was written behind it. `number` counts the requests of an engine: the
    higher, the younger. `need`: the blocks that it takes at most."""

    number: int
    prompt: tuple[int, ...]
    writer: Writer
    need: int
    rows: list[Row]
    stopped: str = field(default="")

    def __repr__(self) -> str:
        state = self.reason or "under way"
        return f"Request({self.number}, {len(self.prompt)} + {len(self.ids)} tokens, {state})"

    @property
    def ids(self) -> tuple[int, ...]:
        """The new ids so far, the eos id included; those of beams come all at the end."""
        return tuple(self.writer.ids)

    @property
    def reason(self) -> str:
        """Why it has ended: "eos", "stop string", "length", "cancelled", or "failed" where its
        logits were not numbers; "" while it goes on."""
        return self.stopped or self.writer.reason

    @property
    def ready(self) -> bool:
        """Whether every row lacks just its last token."""
        return all(row.left == 1 for row in self.rows)

    def next_row(self) -> Row | None:
        """The row whose prompt is to be computed; those behind it share blocks with it."""
        return next((row for row in self.rows if row.left > 1), None)

    def most(self, row: Row) -> int:
        """How many tokens of a row may be computed as a prompt. Several rows take their last step
        together."""
        return row.left if len(self.rows) == 1 else row.left - 1

    def advance(self, moves: Moves) -> None:
        """The rows of the next step."""
        if len(self.rows) == len(moves) == 1:
            self.rows[0].tokens.append(moves[0][1])
            return
        before, self.rows = self.rows, [self.rows[parent].move(token) for parent, token in moves]
        for row in before:
            row.table.clear()


def most_blocks(prompt: int, new: int, width: int, size: int) -> int:
    """The blocks that a prompt and its new tokens take at most, the last of which is never given
    back: `width` rows share those that the prompt fills."""
    shared = prompt // size
    return shared + width * (-(-(prompt + new - 1) // size) - shared)


def shared_pages(tokens: Sequence[int], other: Sequence[int], size: int) -> int:
    """How many full blocks two sequences begin alike with, the last token of either left out."""
    both = min(len(tokens), len(other)) - 1
    alike = next((i for i in range(both) if tokens[i] != other[i]), both)
    return alike // size


__all__ = ["CANCELLED", "FAILED", "Request", "Row", "most_blocks", "shared_pages"]
