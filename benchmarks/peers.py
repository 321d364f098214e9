"""SmolLM2 on the CPU: graphdsl and every peer that is installed, on the same weights, prompt ids
and threads.

    python benchmarks/peers.py [--threads 2] [--runs 5] [--steps 32] [--markdown PATH] [--json PATH]
                               [--ours BF16 Q8_0 Q4_0 int8 "int4:32*int8" ...] [--llama BF16 ...]

Measured are prefill of 512 tokens, decode behind 64 and behind 512, and the time from opening the
file to the logits behind 64 tokens (what can be built or converted beforehand is there already).
The sides take turns in one process; medians, and the least and the most, are printed as a table.
Before that their logits are compared: `differ` is the largest difference from transformers in f32,
relative to the largest logit. Peers that are not installed are listed with how to install them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peers_gguf import KINDS, folder_of, gguf_of, wide_model
from peers_sides import PEERS, Given, Side, is_there, sides

from graphdsl.errors import GraphError
from graphdsl.hf.fetch import resolve_model
from graphdsl.reference import error_of

SHORT, LONG = 64, 512
PAUSE = 0.1
"""Seconds between turns, in which threads that spin go to sleep."""


@dataclass(frozen=True)
class Files:
    """The packaged model in the forms that sides read."""

    source: Path
    made: Path
    kinds: tuple[str, ...] = tuple(KINDS)

    def gguf(self, kind: str) -> Path:
        return gguf_of(self.source, kind, self.made)

    def folder(self) -> Path:
        return folder_of(self.source, self.made)


@dataclass
class Figures:
    """Seconds of one side: one number a run."""

    side: Side
    differ: float | None = None
    opening: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)

    def take_turn(self, ids: Sequence[int], steps: int) -> None:
        time.sleep(PAUSE)
        self.short.append(self.side.run(list(ids[:SHORT]), steps)[1])
        prefill, decode = self.side.run(list(ids), steps)
        self.prefill.append(prefill)
        self.long.append(decode)

    def rates(self) -> dict[str, Any]:
        """Tokens a second, and seconds to the first logits: median, least and most."""
        return {"prefill_tokens_per_s": _spread([LONG / s for s in self.prefill]),
                f"decode_behind_{SHORT}_tokens_per_s": _spread([1 / s for s in self.short]),
                f"decode_behind_{LONG}_tokens_per_s": _spread([1 / s for s in self.long]),
                "first_logits_s": _spread(self.opening)}


def _spread(numbers: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def opened(side: Side, ids: Sequence[int], wanted: torch.Tensor, runs: int) -> Figures:
    """The side, opened several times, with its logits compared."""
    figures = Figures(side)
    if not side.compiles:
        side.open()  # builds and converts what is kept
        side.prefill(list(ids[:SHORT]))
    for _ in range(1 if side.compiles else runs):
        time.sleep(PAUSE)
        begin = time.perf_counter()
        side.open()
        logits = side.prefill(list(ids[:SHORT]))
        figures.opening.append(time.perf_counter() - begin)
    if logits is not None:
        figures.differ = error_of(logits, wanted)
    side.run(list(ids[:SHORT]), 2)
    side.run(list(ids), 2)
    return figures


def reference(files: Files, ids: Sequence[int]) -> torch.Tensor:
    """transformers' logits in f32 behind the short prompt."""
    model = wide_model(files.source)
    logits: torch.Tensor = model(torch.tensor([list(ids[:SHORT])]), logits_to_keep=1).logits
    return logits[0, -1]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    home = Path(os.environ.get("GRAPHDSL_CACHE") or Path.home() / ".cache" / "graphdsl")
    files = Files(resolve_model("smollm2", home), home / "benchmarks")
    torch.manual_seed(0)
    ids = torch.randint(3, 49152, (LONG,)).tolist()
    every = sides(Given(files, given.threads, LONG + given.steps + 8), given.ours, given.peers,
                  given.llama, given.openvino)
    skipped, figures = {}, []
    with torch.inference_mode():
        wanted = reference(files, ids)
        for side in every:
            label = f"{side.name} {side.weights}"
            print(f"opening {label}", flush=True)
            try:
                figures.append(opened(side, ids, wanted, given.opens))
            except GraphError as error:
                skipped[label] = error.message
        for run in range(given.runs):
            print(f"run {run + 1} of {given.runs}", flush=True)
            for each in figures:
                each.take_turn(ids, given.steps)
    missing = {peer: how for peer, (_, how) in PEERS.items()
               if peer in given.peers and not is_there(peer)}
    results = [{"name": f.side.name, "version": f.side.version, "weights": f.side.weights,
                "logits_relative_error": f.differ} | f.rates() for f in figures]
    return {"machine": _machine(), "threads": given.threads, "runs": given.runs,
            "steps": given.steps, "opens": given.opens, "results": results, "skipped": skipped,
            "not_installed": missing}


def _machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "python": platform.python_version(),
            "torch": torch.__version__, "system": platform.platform()}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    digits = {"prefill_tokens_per_s": 0, f"decode_behind_{SHORT}_tokens_per_s": 0,
              f"decode_behind_{LONG}_tokens_per_s": 0, "first_logits_s": 2}
    lines = [f"SmolLM2-135M on {found['machine']['cpu']}, {found['threads']} threads, medians of "
             f"{found['runs']} runs (least to most); first logits of {found['opens']}.", "",
             f"| | weights | prefill {LONG}, tok/s | decode behind {SHORT}, tok/s | decode behind "
             f"{LONG}, tok/s | first logits, s | differ |", "|---|---|---:|---:|---:|---:|---:|"]
    for result in found["results"]:
        cells = [_cell(result[column], count) for column, count in digits.items()]
        differ = result["logits_relative_error"]
        lines.append(f"| {result['name']} {result['version']} | {result['weights']} | "
                     f"{' | '.join(cells)} | {'-' if differ is None else f'{differ:.1e}'} |")
    lines += [""] if found["skipped"] or found["not_installed"] else []
    lines += [f"- {label}: {why}" for label, why in found["skipped"].items()]
    lines += [f"- {peer} is not installed: `{how}`"
              for peer, how in found["not_installed"].items()]
    return "\n".join(lines) + "\n"


def _cell(spread: dict[str, float], digits: int) -> str:
    median, least, most = (f"{spread[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--opens", type=int, default=3, help="how often every side is opened")
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a run")
    parser.add_argument("--ours", nargs="*", default=["BF16", "Q8_0", "Q4_0"],
                        help="kinds of files, or formats to quantise to; *int8 for activations")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--llama", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--openvino", nargs="*", choices=("Q8_0", "Q4_0"),
                        default=["Q8_0", "Q4_0"])
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.utils.logging.disable_progress_bar()
    found = measure(given)
    text = table(found)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
