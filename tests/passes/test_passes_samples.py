"""Random inputs are such that an operator takes them."""

from __future__ import annotations

from graphdsl import KVCache, Layer, Param, Value, trace
from graphdsl.ops import attention, embedding, maximum, merge_heads, split_heads
from graphdsl.passes.samples import samples

ROWS = 40


class Placed(Layer):
    """Positions say where tokens stand, and which rows of a table are added, at first or last."""

    signature = "x[batch, tokens, 8], positions[batch, tokens]:i32 -> y[batch, tokens, 8]"

    def __init__(self, *, last: bool, lifted: bool = False) -> None:
        self.table = Param(ROWS, 8)
        self.kv = KVCache(2, 4)
        self.last, self.lifted = last, lifted

    def forward(self, x: Value, positions: Value) -> Value:
        if not self.last:
            x = x + self.rows(positions)
        heads = split_heads(x, 2)
        kv = self.kv.append(heads, heads, positions)
        y: Value = merge_heads(attention(heads, kv.k, kv.v, positions))
        return y + self.rows(positions) if self.last else y

    def rows(self, positions: Value) -> Value:
        found: Value = embedding(maximum(positions, 0) if self.lifted else positions, self.table)
        return found


def test_positions_that_rows_are_looked_up_by_are_not_padded() -> None:
    for last in (False, True):
        found = samples(trace(Placed(last=last)), 0, {"batch": 2, "tokens": 3}, past=4)
        assert found.inputs["positions"].tolist() == [[4, 5, 6]] * 2


def test_positions_that_are_lifted_first_are_padded() -> None:
    given = samples(trace(Placed(last=False, lifted=True)), 0, {"batch": 2, "tokens": 3})
    assert given.inputs["positions"].tolist() == [[0, 1, 2], [-1, 0, 1]]
