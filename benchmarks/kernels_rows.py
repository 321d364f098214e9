"""Times products of several rows beside those of one row, interleaved in one run: what a batch of
prompts costs more than one prompt.

    python benchmarks/kernels_rows.py --threads 2 [--json out.json]

Weights are cycled through copies that no cache holds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from kernels import build
from kernels_quant import medians, packed, product

ROWS = (1, 2, 4, 8, 12, 16)
# Weights, and the dtype of rows beside them.
WEIGHTS = (("bf16", "bf16"), ("f32", "f32"), ("int8", "bf16"), ("int8_rounded", "bf16"),
           ("int4_32", "bf16"), ("int4_32_rounded", "bf16"))


@dataclass(frozen=True)
class Result:
    """Medians; `ratios` are to the time of one row. Weights that are `rounded` have rows rounded to
    int8."""

    weights: str
    rows: tuple[int, ...]
    microseconds: tuple[float, ...]
    ratios: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3, help="for each kind of weights")
    parser.add_argument("--size", default="4096x4096", help="outputs and inputs of the weight")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    n, k = map(int, options.size.split("x"))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        lib = build(Path(folder))
        for name, dtype in WEIGHTS:
            weights = packed(lib, name, n, k)
            calls = [product(lib, name, dtype, weights, (rows, n, k), options.threads)
                     for rows in ROWS]
            times = medians(calls, options.threads, options.seconds)
            results.append(Result(name, ROWS, tuple(t * 1e6 for t in times),
                                  tuple(t / times[0] for t in times)))
            ratios = "  ".join(f"{rows}: {ratio:5.2f}" for rows, ratio
                               in zip(ROWS, results[-1].ratios, strict=True))
            print(f"{name:16} one row {times[0] * 1e6:8.1f} us   {ratios}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
