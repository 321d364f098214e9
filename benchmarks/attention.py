"""Attention of one token over long caches beside a read of the same memory, and of prompts beside
torch, interleaved in one run; prints medians and their ratios.

    python benchmarks/attention.py --threads 2 [--only decode|prefill] [--past 512 2048 8192]

The caches of a decode step are cycled through more memory than the last-level cache holds. Its
share is that of the bandwidth which a plain read reaches in the same turns, on the bytes of keys
and values that must be read. int8 caches have a scale for every row. A prompt's share is that of
the multiply-adds of f32.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent / "backends" / "cpu" / "kernels"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-Wno-psabi", "-shared", "-fPIC")
HEADS = ((32, 32, 128), (32, 8, 128), (9, 3, 64))
BEYOND_CACHE = 192 << 20
WINDOW = 16 << 20
"""Bytes that one turn reads."""
CHAINS, TURNS = 12, 1_000_000


def build(folder: Path) -> ctypes.CDLL:
    library = folder / "attention.so"
    subprocess.run(["g++", *FLAGS, f"-I{KERNELS}", str(HERE / "attention.cpp"), "-o",
                    str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.attend_scratch.restype = ctypes.c_int64
    return loaded


def seconds_of(call: Callable[[], object], threads: int) -> float:
    """With one thread its own processor time, so that other processes disturb less."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    begin = clock()
    call()
    return clock() - begin


def pointer(tensor: torch.Tensor, offset: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() + offset)


def scratch_of(lib: ctypes.CDLL, sizes: ctypes.Array[ctypes.c_int64], threads: int) -> torch.Tensor:
    """Bytes that start on a cache line."""
    raw = torch.empty(lib.attend_scratch(sizes, threads) + 64, dtype=torch.uint8)
    start = -raw.data_ptr() % 64
    return raw[start:]


def cache_rows(name: str, rows: int, dim: int) -> torch.Tensor:
    """Bytes [rows, bytes of a row] of random numbers."""
    if name == "int8":
        numbers = torch.randint(-127, 128, (rows, dim), dtype=torch.int8).view(torch.uint8)
        return torch.cat([numbers, torch.full((rows, 1), 0.01).view(torch.uint8)], 1)
    dtype = torch.float32 if name == "f32" else torch.bfloat16
    return torch.randn(rows, dim).to(dtype).view(torch.uint8)


def decode(lib: ctypes.CDLL, name: str, shape: tuple[int, int, int], past: int, threads: int,
           seconds: float) -> str:
    heads, kv_heads, dim = shape
    slots = past + 1
    one = cache_rows(name, slots * kv_heads, dim).flatten()
    copies = BEYOND_CACHE // (2 * one.numel()) + 1
    memory = one.repeat(2 * copies)
    q = torch.randn(heads, dim).to(torch.float32 if name == "f32" else torch.bfloat16)
    out, position = torch.empty_like(q), torch.tensor([past], dtype=torch.int32)
    sizes = (ctypes.c_int64 * 5)(1, heads, kv_heads, slots, dim)
    scratch, call = scratch_of(lib, sizes, threads), getattr(lib, f"attend_{name}")
    steps, at = max(1, WINDOW // (2 * one.numel())), 0
    windows = memory.numel() // WINDOW

    def attend() -> None:
        nonlocal at
        for _ in range(steps):
            k, at = 2 * one.numel() * at, (at + 1) % copies
            call(threads, pointer(q), pointer(memory, k), pointer(memory, k + one.numel()),
                 pointer(out), sizes, pointer(position), pointer(scratch))

    def read(window: int, streams: int) -> float:
        place = pointer(memory, window % windows * WINDOW)
        return WINDOW / seconds_of(lambda: lib.read_bytes(threads, place, ctypes.c_int64(WINDOW),
                                                          streams), threads)

    times: list[float] = []
    reads: list[float] = []
    until = time.monotonic() + seconds
    while len(times) < 8 or time.monotonic() < until:
        times.append(seconds_of(attend, threads) / steps)
        reads.append(max(read(2 * len(times), 1), read(2 * len(times) + 1, 8)))
    taken, limit = statistics.median(times), statistics.median(reads)
    got = 2 * one.numel() / taken
    return (f"decode  {heads}/{kv_heads} x {dim:3} {name:4} past {past:5}  {taken * 1e3:8.3f} ms  "
            f"{got / 1e9:5.1f} of {limit / 1e9:5.1f} GB/s  share {got / limit:.2f}")


def prefill(lib: ctypes.CDLL, name: str, shape: tuple[int, int, int], tokens: int, threads: int,
            seconds: float) -> str:
    heads, kv_heads, dim = shape
    dtype = torch.float32 if name == "f32" else torch.bfloat16
    q = torch.randn(1, tokens, heads, dim).to(dtype)
    k, v = (torch.randn(1, kv_heads, tokens, dim).to(dtype) for _ in range(2))
    out = torch.empty_like(q)
    sizes = (ctypes.c_int64 * 5)(tokens, heads, kv_heads, tokens, dim)
    scratch, call = scratch_of(lib, sizes, threads), getattr(lib, f"attend_{name}")
    times: list[tuple[float, float, float]] = []
    until = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < until:
        ours = seconds_of(lambda: call(threads, pointer(q), pointer(k), pointer(v), pointer(out),
                                       sizes, None, pointer(scratch)), threads)
        peer = seconds_of(lambda: torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, is_causal=True, enable_gqa=kv_heads != heads), threads)
        peak = seconds_of(lambda: lib.multiply_adds(threads, ctypes.c_int64(TURNS)), threads)
        times.append((ours, peer, peak))
    mine, theirs, loop = (statistics.median(column) for column in zip(*times, strict=True))
    work = 2 * heads * tokens * (tokens + 1) * dim
    most = 2 * lib.lanes() * CHAINS * TURNS * threads / loop
    return (f"prefill {heads}/{kv_heads} x {dim:3} {name:4} {tokens:5} tokens  {mine * 1e3:8.1f} ms"
            f"  torch {theirs * 1e3:8.1f} ms  ratio {theirs / mine:.2f}  share of the peak "
            f"{work / mine / most:.2f}, torch {work / theirs / most:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    parser.add_argument("--only", choices=("decode", "prefill"))
    parser.add_argument("--past", type=int, nargs="+", default=(512, 2048, 8192))
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        lib = build(Path(folder))
        if options.only != "prefill":
            for shape in HEADS:
                for past in options.past:
                    for name in ("f32", "bf16", "int8"):
                        print(decode(lib, name, shape, past, options.threads, options.seconds),
                              flush=True)
        if options.only != "decode":
            for name in ("f32", "bf16"):
                print(prefill(lib, name, HEADS[0], options.tokens, options.threads,
                              options.seconds), flush=True)


if __name__ == "__main__":
    main()
