"""The bytes that kernels need besides their operands, as their headers compute them.

A plan has sizes as C text, which a library evaluates when lengths are known. Here the same text is
evaluated in Python, for reports and tests that have no library.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphdsl.expr import c_name

ROWS = 6
"""Rows of the largest tile of a matmul: R in matmul_tile.hpp."""
FEW_ROWS = 32
FEW_BLOCK = 128
FEW_QUERIES = 16
TILE_KEYS, STEP_KEYS, BLOCK_QUERIES = 64, 128, 48 * ROWS
BLOCK_K, BLOCK_COLUMNS, CHUNK_ROWS = 512, 128, 88 * ROWS
LEAST_K = 16


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def padded(n: int) -> int:
    return round_up(n, 16)


def matmul_scratch(rows: int, n: int, k: int, matmuls: int, threads: int) -> int:
    if rows <= FEW_ROWS:
        return threads * round_up(rows * round_up(k, 2 * FEW_BLOCK) * 4, 64)
    row = round_up(max(k, LEAST_K), 2) * 4
    chunks = -(-rows // CHUNK_ROWS)
    chunk = round_up(-(-rows // chunks), ROWS)
    own = BLOCK_K * BLOCK_COLUMNS + matmuls * chunk * BLOCK_COLUMNS
    return round_up(chunk * row, 64) + threads * own * 4


def quant_scratch(rows: int, n: int, k: int, matmuls: int, threads: int) -> int:
    row = -(-k // 32) * 2 * 4 * (16 + 2)
    few = threads * round_up(rows * row, 64) if rows <= FEW_ROWS else 0
    return max(few, matmul_scratch(rows, n, k, matmuls, threads))


def expert_scratch(rows: int, experts: int, k: int, threads: int) -> int:
    room = rows + min(experts, rows // (ROWS + 1)) * (ROWS - 1)
    padded_rows = min(round_up(rows, ROWS), CHUNK_ROWS) if rows > ROWS else 0
    own = BLOCK_K * BLOCK_COLUMNS + padded_rows * BLOCK_COLUMNS if padded_rows else 0
    order = round_up((rows + experts + 2) * 4, 64)
    return round_up(room * round_up(k, 2) * 4, 64) + threads * (order + own * 4)


@dataclass(frozen=True)
class Scratch:
    """Evaluates sizes for vectors of `lanes` floats and a number of threads."""

    lanes: int
    threads: int

    def bytes(self, text: str, dims: Mapping[str, int]) -> int:
        """The number that C text of a size stands for. KeyError for a dim without a value."""
        names = {c_name(name): size for name, size in dims.items()} | {"threads": self.threads}
        return self._value(ast.parse(text, mode="eval").body, names)

    @property
    def functions(self) -> dict[str, Callable[..., int]]:
        return {"round_up": round_up, "padded": padded, "most": max,
                "matmul_scratch": matmul_scratch, "quant_scratch": quant_scratch,
                "expert_scratch": expert_scratch,
                "attention_scratch": self.attention}

    def attention(self, tokens: int, heads: int, kv_heads: int, dim: int, value_dim: int,
                  together: int, threads: int) -> int:
        group = heads // kv_heads
        rows = tokens * group
        if rows <= FEW_QUERIES:
            unit = max(16, 2 * self.lanes)
            q, v = round_up(dim, unit) + 8, round_up(value_dim, unit)
            return threads * 4 * padded(rows * together * (q + 3 * (v + 16))
                                        + rows * (TILE_KEYS + 4))
        panel = (4 if self.lanes == 16 else 2) * self.lanes
        v = round_up(value_dim, panel)
        queries = round_up(max(BLOCK_QUERIES, group), ROWS)
        return threads * 4 * (padded(queries * (padded(dim) + 2 + v + 2)
                                     + ROWS * (STEP_KEYS + 2) + STEP_KEYS * (dim + v)) + 64)

    def _value(self, node: ast.expr, names: Mapping[str, int]) -> int:
        if isinstance(node, ast.Constant):
            return int(str(node.value))
        if isinstance(node, ast.Name):
            return names[node.id]
        if isinstance(node, ast.UnaryOp):
            return -self._value(node.operand, names)
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left, names), self._value(node.right, names)
            return left + right if isinstance(node.op, ast.Add) else left * right
        assert isinstance(node, ast.Call), ast.dump(node)
        assert isinstance(node.func, ast.Name), ast.dump(node)
        return self.functions[node.func.id](*(self._value(a, names) for a in node.args))
