"""Times products with quantised weights against a loop that only reads as many bytes, against the
same in bf16, and against torch in bf16; all of them interleaved in one run.

    python benchmarks/kernels_quant.py --threads 1 [--json out.json]

Weights are cycled through copies that no cache holds. With one thread the time is the thread's own
processor time, so that other processes disturb less.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import torch
from kernels import aligned, build, pointer

from graphdsl.quant import Quant, round_to_nearest

FORMATS = {"int8": Quant(8), "int8_rounded": Quant(8, act="int8"), "int8_32": Quant(8, 32),
           "int8_32_rounded": Quant(8, 32, act="int8"), "int4_32": Quant(4, 32),
           "int4_32_rounded": Quant(4, 32, act="int8")}
SIZES = ((1, 4096, 4096), (1, 11008, 4096), (1, 1536, 576), (8, 4096, 4096), (512, 4096, 4096),
         (512, 1536, 576))
BEYOND_CACHE = 160 << 20
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True)
class Result:
    """Medians; `share` is of what the reading loop reaches on the same bytes. Weights that are
    `rounded` have rows rounded to int8."""

    sizes: tuple[int, ...]
    weights: str
    rows: str
    microseconds: float
    gbytes: float
    share: float | None


def packed(lib: ctypes.CDLL, name: str, n: int, k: int) -> torch.Tensor:
    """Packed weights [copies, bytes]."""
    longs = (ctypes.c_int64(n), ctypes.c_int64(k))
    size = getattr(lib, f"packed_bytes_{name}")
    size.restype = ctypes.c_int64
    one = aligned(-(-size(*longs) // 64) * 64)
    weight = torch.randn(n, k) / k ** 0.5
    if name in FORMATS:
        made = round_to_nearest(weight, FORMATS[name])
        getattr(lib, f"pack_{name}")(pointer(made.values), pointer(made.scales), pointer(one),
                                     *longs)
    else:
        stored = weight.to(DTYPES[name])
        getattr(lib, f"pack_{name}")(pointer(stored), pointer(one), *longs)
    copies = max(2, BEYOND_CACHE // one.numel())
    every = aligned(copies * one.numel()).view(copies, -1)
    return every.copy_(one)


def medians(calls: list[Callable[[int], object]], threads: int, seconds: float) -> list[float]:
    """Medians of every call in seconds, measured in turns; turn i works on copy i."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    until = time.monotonic() + seconds
    for turn in count():
        for call, found in zip(calls, times, strict=True):
            begin = clock()
            call(turn)
            found.append(clock() - begin)
        if turn >= 5 and time.monotonic() > until:
            return [statistics.median(found[1:]) for found in times]
    raise AssertionError


def product(lib: ctypes.CDLL, name: str, dtype: str, weights: torch.Tensor,
            sizes: tuple[int, ...], threads: int) -> Callable[[int], object]:
    """x[rows, k] times one of the copies, by number."""
    rows, n, k = sizes
    longs = [ctypes.c_int64(i) for i in sizes]
    x = torch.randn(rows, k).to(DTYPES[dtype])
    y = torch.empty(rows, n, dtype=x.dtype)
    lib.quantised_scratch.restype = ctypes.c_int64
    scratch = aligned(lib.quantised_scratch(*longs, threads))
    call = getattr(lib, f"linear_{name}_{dtype}" if name in FORMATS else f"linear_{name}")

    def run(turn: int) -> None:
        call(threads, pointer(x), pointer(weights[turn % len(weights)]), pointer(y), *longs,
             pointer(scratch))
    return run


def compared(lib: ctypes.CDLL, sizes: tuple[int, ...], threads: int, seconds: float,
             dtype: str) -> list[Result]:
    """Every format with rows of one dtype, beside that dtype's weights and torch's product."""
    rows, n, k = sizes
    results = []
    for name in (*FORMATS, dtype):
        weights = packed(lib, name, n, k)
        size = weights.shape[1]

        def read(turn: int, weights: torch.Tensor = weights) -> None:
            place = weights[(turn + len(weights) // 2) % len(weights)]
            lib.read_bytes(threads, pointer(place), ctypes.c_int64(place.numel()))

        ours, loop = medians([product(lib, name, dtype, weights, sizes, threads), read], threads,
                             seconds)
        results.append(Result(sizes, name, dtype, ours * 1e6, size / ours / 1e9, loop / ours))
    plain = [torch.randn(n, k).to(DTYPES[dtype])
             for _ in range(max(2, BEYOND_CACHE // (n * k * DTYPES[dtype].itemsize)))]
    x = torch.randn(rows, k).to(DTYPES[dtype])
    (peer,) = medians([lambda turn: torch.nn.functional.linear(x, plain[turn % len(plain)])],
                      threads, seconds)
    size = plain[0].nbytes
    return [*results, Result(sizes, "torch", dtype, peer * 1e6, size / peer / 1e9, None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each comparison")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        lib = build(Path(folder))
        for sizes in SIZES:
            for result in compared(lib, sizes, options.threads, options.seconds, options.dtype):
                results.append(result)
                share = "" if result.share is None else f"{result.share:5.0%} of reading"
                print(f"{'x'.join(map(str, sizes)):14} {result.weights:16} {result.rows:5}"
                      f"{result.microseconds:9.1f} us  {result.gbytes:5.1f} GB/s  {share}",
                      flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
