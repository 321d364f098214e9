"""Times the CPU kernels against torch, interleaved in one run; prints medians and their ratio.

    python benchmarks/kernels.py --threads 2 [--only gemv] [--json out.json]

With one thread the time is the thread's own processor time, so that other processes disturb less.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent / "backends" / "cpu" / "kernels"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-Wno-psabi", "-shared", "-fPIC")
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
Sizes = tuple[tuple[int, ...], ...]
LINEARS: dict[str, Sizes] = {
    "gemv": ((1, 4096, 4096), (1, 4096, 11008), (1, 1536, 576)),
    "few rows": ((2, 4096, 4096), (4, 4096, 4096), (8, 4096, 4096)),
    "gemm": ((64, 4096, 4096), (512, 4096, 4096), (512, 1536, 576), (512, 576, 1536)),
}
# tokens, heads, kv_heads, slots, dim
ATTENTIONS: dict[str, Sizes] = {
    "attention decode": ((1, 32, 32, 512, 128), (1, 9, 3, 1024, 64), (1, 32, 8, 4096, 128)),
    "attention prefill": ((512, 32, 32, 512, 128), (512, 9, 3, 512, 64), (2048, 8, 2, 2048, 128)),
}


@dataclass(frozen=True)
class Result:
    """One comparison; `ratio` above 1 means that ours is faster."""

    kind: str
    sizes: tuple[int, ...]
    dtype: str
    ours_ms: float
    torch_ms: float
    ratio: float
    gflops: float
    gbytes: float
    error: float


def build(folder: Path) -> ctypes.CDLL:
    library = folder / "kernels.so"
    subprocess.run(["g++", *FLAGS, f"-I{KERNELS}", str(HERE / "kernels.cpp"), "-o", str(library)],
                   check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("linear_scratch", "attend_scratch", "packed_bytes_f32", "packed_bytes_bf16"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def aligned(size: int) -> torch.Tensor:
    """Bytes that start on a cache line."""
    raw = torch.empty(size + 64, dtype=torch.uint8)
    start = -raw.data_ptr() % 64
    return raw[start:start + size]


def medians(ours: Callable[[], object], peer: Callable[[], object], threads: int,
            seconds: float) -> tuple[float, float]:
    """Medians of both in seconds, measured in turns."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    ours(), peer()
    times: list[tuple[float, float]] = []
    until = time.monotonic() + seconds
    while len(times) < 5 or time.monotonic() < until:
        begin = clock()
        ours()
        middle = clock()
        peer()
        times.append((middle - begin, clock() - middle))
    return (statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))


def linear(lib: ctypes.CDLL, kind: str, sizes: tuple[int, ...], dtype: torch.dtype, threads: int,
           seconds: float) -> Result:
    rows, n, k = sizes
    name = NAMES[dtype]
    x = torch.randn(rows, k).to(dtype)
    w = (torch.randn(n, k) / k ** 0.5).to(dtype)
    y = torch.empty(rows, n, dtype=dtype)
    longs = [ctypes.c_int64(i) for i in (rows, n, k)]
    packed = aligned(getattr(lib, f"packed_bytes_{name}")(*longs[1:]))
    getattr(lib, f"pack_{name}")(pointer(w), pointer(packed), *longs[1:])
    scratch = aligned(lib.linear_scratch(*longs, threads))
    call = getattr(lib, f"linear_{name}")
    ours, peer = medians(
        lambda: call(threads, pointer(x), pointer(packed), pointer(y), *longs, pointer(scratch)),
        lambda: torch.nn.functional.linear(x, w), threads, seconds)
    want = x.float() @ w.float().T
    return Result(kind, sizes, name, ours * 1e3, peer * 1e3, peer / ours,
                  2 * rows * n * k / ours / 1e9, w.nbytes / ours / 1e9, relative(y, want))


def attention(lib: ctypes.CDLL, kind: str, sizes: tuple[int, ...], dtype: torch.dtype,
              threads: int, seconds: float) -> Result:
    tokens, heads, kv_heads, slots, dim = sizes
    q = torch.randn(1, tokens, heads, dim).to(dtype)
    k, v = (torch.randn(1, kv_heads, slots, dim).to(dtype) for _ in range(2))
    out = torch.empty_like(q)
    array = (ctypes.c_int64 * 5)(*sizes)
    scratch = aligned(lib.attend_scratch(array, threads))
    call = getattr(lib, f"attend_{NAMES[dtype]}")
    grouped = kv_heads != heads
    heads_first = q.transpose(1, 2)

    def peer() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            heads_first, k, v, is_causal=tokens == slots, enable_gqa=grouped)

    ours_s, peer_s = medians(
        lambda: call(threads, pointer(q), pointer(k), pointer(v), pointer(out), array,
                     pointer(scratch)), peer, threads, seconds)
    share = (1 + 1 / slots) / 2 if tokens == slots else 1
    return Result(kind, sizes, NAMES[dtype], ours_s * 1e3, peer_s * 1e3, peer_s / ours_s,
                  4 * tokens * heads * slots * dim * share / ours_s / 1e9,
                  (k.nbytes + v.nbytes) / ours_s / 1e9, relative(out, peer().transpose(1, 2)))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want.float()).abs().max() / want.float().abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each comparison")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        lib = build(Path(folder))
        jobs = [(linear, kind, sizes) for kind, group in LINEARS.items() for sizes in group]
        jobs += [(attention, kind, sizes) for kind, group in ATTENTIONS.items() for sizes in group]
        for run, kind, sizes in jobs:
            if options.only not in kind:
                continue
            for dtype in NAMES:
                result = run(lib, kind, sizes, dtype, options.threads, options.seconds)
                results.append(result)
                print(f"{result.kind:18} {'x'.join(map(str, sizes)):20} {result.dtype:5}"
                      f"ours {result.ours_ms:9.3f} ms  torch {result.torch_ms:9.3f} ms  "
                      f"ratio {result.ratio:5.2f}  {result.gflops:6.1f} GFLOP/s "
                      f"{result.gbytes:5.1f} GB/s  error {result.error:.1e}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
