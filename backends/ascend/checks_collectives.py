"""What ATB demands of operations between ranks, and the shapes they make."""

from __future__ import annotations

from .checks_call import Call
from .checks_sizes import Shapes, same


def all_reduce(call: Call) -> Shapes:
    _check_rank(call)
    return (call.seen("x"),)


def linear_parallel(call: Call) -> Shapes:
    _check_rank(call)
    x, w = call.rank("x", 2, 3), call.rank("w", 2)
    ranks = call.number("rankSize")
    if ranks & (ranks - 1):
        raise call.field_wrong("rankSize", "a power of 2", "Linear and AllReduce take others")
    n, k = w if call.fields["transWeight"] else w[::-1]
    if not same(k, x[-1]):
        raise call.wrong("w", f"{x[-1]} columns as x has (transWeight says that w is [n, k])"
                         if call.fields["transWeight"] else
                         f"{x[-1]} rows as x has columns (without transWeight w is [k, n])")
    return ((*x[:-1], n),)


def _check_rank(call: Call) -> None:
    if not 0 <= call.number("rank") < call.number("rankSize"):
        raise call.field_wrong("rank", f"one below rankSize, which is {call.number('rankSize')}")
