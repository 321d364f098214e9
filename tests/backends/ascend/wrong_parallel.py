"""Sums over ranks, right ones and wrong ones."""

from __future__ import annotations

from wrong_graphs import Wrong, graph, node, t

from graphdsl.backends.ascend.atb import ROWS, Field, Graph, Tensor

X, W = t("x", ROWS, 64), t("w", 96, 64)


def all_reduce(x: Tensor = X, y: Tensor | None = None, **fields: Field) -> Graph:
    made = y or t("y", ROWS, 64, dtype=x.dtype)
    return graph(node("AllReduce", {"rank": 0, "rankSize": 3, **fields}, [x], [made]))


def linear_parallel(x: Tensor = X, w: Tensor = W, y: Tensor | None = None,
                    **fields: Field) -> Graph:
    made = y or t("y", ROWS, 96, dtype=x.dtype)
    given = {"transWeight": True, "rank": 1, "rankSize": 2, **fields}
    return graph(node("LinearParallel", given, [x, w], [made]))


RIGHT_PARALLEL = {
    "sum over ranks": all_reduce(),
    "sum of f32": all_reduce(t("x", ROWS, 64, dtype="f32")),
    "linear over ranks": linear_parallel(),
    "linear by a weight [k, n]": linear_parallel(w=t("w", 64, 96), transWeight=False),
}

WRONG_PARALLEL = (
    Wrong("rank beyond", all_reduce(rank=3), ("rank is 3", "rankSize, which is 3")),
    Wrong("no ranks", all_reduce(rankSize=0), ("rank is 0",)),
    Wrong("sum of i32", all_reduce(t("x", ROWS, 64, dtype="i32")), ("i32",)),
    Wrong("sum of another shape", all_reduce(y=t("y", ROWS, 32)), ("ATB makes [rows, 64]",)),
    Wrong("linear over 3", linear_parallel(rankSize=3), ("rankSize is 3", "a power of 2")),
    Wrong("k of ranks differs", linear_parallel(w=t("w", 96, 32)), ("64 columns as x has",)),
    Wrong("linear over ranks on 310p", linear_parallel(), ("LinearParallel", "310p"), "310p"),
)
