"""What a machine can do at most, and how near to it a call is.

A call can take no less time than its bytes need at the machine's read bandwidth, nor less than its
operations need at the machine's peak for their dtype: the longer of the two is its limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

from graphdsl.backend import Backend
from graphdsl.manifest import Json

MEMORY = "memory"
"""What binds a call whose bytes take longer than its operations."""
SAMPLE_SECONDS, FEWEST = 5e-4, 5
"""What a sample of a rate is made to take, and the fewest samples."""
TIMES_CACHE = 4
"""So many times the caches, and what was read first is no longer in them."""


@dataclass(frozen=True)
class Limits:
    """Bytes read a second, and additions and multiplications a second by the dtype of what is
    multiplied; 0 where nothing was measured. A bf16 or an int8 can always be multiplied as f32."""

    read: float
    f32: float
    bf16: float
    int8: float

    def with_larger(self, other: Limits) -> Limits:
        """The larger of each."""
        read, f32, bf16, int8 = (max(getattr(self, f.name), getattr(other, f.name))
                                 for f in fields(self))
        return Limits(read, f32, max(bf16, f32), max(int8, bf16, f32))

    def bound(self, memory: int, operations: int, kind: str) -> tuple[float, str]:
        """The least seconds for so many bytes of memory and so many operations on `kind`, and
        which of the two that is."""
        reading = memory / self.read
        computing = operations / getattr(self, kind)
        return (computing, kind) if computing > reading else (reading, MEMORY)


@dataclass(frozen=True)
class Machine:
    """A CPU as its backend's own loops measured it. `path` names the set of instructions that they
    and the kernels use, `cache_bytes` is the size of all its last-level caches."""

    cpu: str
    path: str
    threads: int
    compiler: str
    cache_bytes: int
    limits: Limits

    def json(self) -> Json:
        return asdict(self)

    @staticmethod
    def read(found: Json) -> Machine:
        """What `json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        numbers = {f.name: float(found["limits"][f.name]) for f in fields(Limits)}
        machine = Machine(str(found["cpu"]), str(found["path"]), int(found["threads"]),
                          str(found["compiler"]), int(found["cache_bytes"]), Limits(**numbers))
        if not (numbers["read"] > 0 and numbers["f32"] > 0 and machine.cache_bytes > 0):
            raise ValueError("nothing was measured")
        return machine


@runtime_checkable
class Measured(Backend, Protocol):
    """A backend that can measure its calls, and what its machine can do."""

    def with_times(self) -> Backend:
        """The same backend, whose libraries measure their calls."""

    def machine(self, threads: int, environment: Mapping[str, str], cache: Path, *,
                fresh: bool) -> Machine:
        """This machine on so many threads, measured once and kept in `cache`; `fresh`: measured
        again. Raises ToolError where there is no compiler."""

    def limits_now(self, threads: int, environment: Mapping[str, str], cache: Path) -> Limits:
        """What the same loops reach at this moment. Raises ToolError as `machine` does."""


def beyond_cache(cache_bytes: int) -> int:
    """Bytes of which none stays in the caches when all are read, but not more than a quarter of
    the memory that is free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(TIMES_CACHE * cache_bytes, free // 4)


def rate(work: Callable[[int], float], seconds: float) -> float:
    """The largest amount a second of `work`, which is given a number of turns and says how much it
    did; 0 where that is nothing. A limit is what the machine can do when nothing disturbs it."""
    turns = 1
    if work(turns) == 0:
        return 0.0
    while (took := _sample(work, turns)[1]) < SAMPLE_SECONDS:
        turns *= max(2, min(10, int(SAMPLE_SECONDS / max(took, 1e-9))))
    best, samples, begin = 0.0, 0, time.perf_counter()
    while samples < FEWEST or time.perf_counter() - begin < seconds:
        done, took = _sample(work, turns)
        best, samples = max(best, done / took), samples + 1
    return best


def _sample(work: Callable[[int], float], turns: int) -> tuple[float, float]:
    begin = time.perf_counter()
    done = work(turns)
    return done, time.perf_counter() - begin


__all__ = ["MEMORY", "Limits", "Machine", "Measured", "beyond_cache", "rate"]
