"""SmolLM2 with its KV caches in several layouts: milliseconds of a decode step, the same tokens.

    python benchmarks/kv_layouts.py [--dtype f32|bf16] [--threads 2] [--past 1000] [--runs 9]
                                    [--tokens 64] [--layouts bnsd bsnd:paged/16 ...] [--json PATH]

All layouts are in one process, with the same packed weights. First every one of them writes
`--tokens` tokens greedily behind a short prompt, to be compared with those of the first layout.
Then each is given the same `--past` tokens, and they take turns at `--steps` decode steps. Printed
are the median and the least time of a step, the median of its ratio to the first layout in the same
turn, which is what a busy machine disturbs least, and how far the logits behind the past are from
those of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import truediv
from pathlib import Path
from typing import Any

import torch

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.hf.model import LanguageModel, OperatorSession, open_model
from graphdsl.ir import Layout
from graphdsl.layer import trace
from graphdsl.reference import error_of
from graphdsl.runtime.operator import Operator

LAYOUTS = ("bnsd", "bsnd", "sbnd", "bnsd:paged/16", "bsnd:paged/16", "bnsd:shift", "bnsd:int8")
PROMPT = (32, 2367, 2270, 260, 4052, 282, 260, 1343, 28)


@dataclass
class Runner:
    """The model in one layout, and what was measured of it."""

    layout: str
    operator: Operator
    session: OperatorSession | None = None
    length: int = 0
    times: list[float] = field(default_factory=list)

    def start(self, capacity: int, ids: Sequence[int]) -> torch.Tensor:
        """Logits behind `ids`, in empty caches."""
        state = self.operator.new_state(1, self.operator.whole_pages(capacity))
        self.session, self.length = OperatorSession(self.operator, state, 1), 0
        return self.step(torch.tensor([ids]))

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocab] after more ids [1, tokens]."""
        assert self.session is not None
        begin, self.length = self.length, self.length + ids.shape[1]
        positions = torch.arange(begin, self.length, dtype=torch.int32)[None]
        return self.session.step(ids, positions)

    def greedy(self, count: int) -> list[int]:
        """The likeliest tokens behind PROMPT."""
        logits, found = self.start(len(PROMPT) + count, PROMPT), []
        for _ in range(count):
            found.append(int(logits.argmax()))
            logits = self.step(torch.tensor([found[-1:]]))
        return found

    def timed(self, steps: int) -> None:
        """Takes a turn."""
        one = torch.tensor([[1]])
        begin = time.perf_counter()
        for _ in range(steps):
            self.step(one)
        self.times.append((time.perf_counter() - begin) / steps * 1e3)


def options_of(text: str, options: BuildOptions) -> BuildOptions:
    """`options` with a layout for every cache."""
    layout = Layout.parse(text)
    chosen = {"order": layout.order, "policy": layout.policy, "storage": layout.storage}
    if layout.block:
        chosen["block"] = str(layout.block)
    passes = {**options.passes, "kv_layout": {k: v for k, v in chosen.items() if v}}
    return BuildOptions(cache=options.cache, dtype=options.dtype, passes=passes,
                        environment=options.environment)


def runners(model: LanguageModel, layouts: Sequence[str]) -> Iterator[Runner]:
    """The model in every layout; what is packed for the first serves them all."""
    graph = trace(model.checkpoint.settings.family.model(model.config), model.options.dtype)
    packed = model.operator.weights
    for text in layouts:
        built = Operator(build_graph(graph, options_of(text, model.options)).path)
        yield Runner(text, built.bind_packed(packed))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    home = os.environ.get("GRAPHDSL_CACHE") or str(Path.home() / ".cache" / "graphdsl")
    options = BuildOptions(cache=Path(home), dtype=given.dtype, environment=dict(os.environ))
    model = open_model("smollm2", options, quantize="none")
    all_runners = list(runners(model, given.layouts))
    torch.manual_seed(0)
    ids = torch.randint(0, model.vocab, (given.past,)).tolist()
    with torch.inference_mode():
        tokens = [runner.greedy(given.tokens) for runner in all_runners]
        capacity = given.past + given.runs * given.steps + 1
        logits = [runner.start(capacity, ids).float().clone() for runner in all_runners]
        for _ in range(given.runs):
            for runner in all_runners:
                runner.timed(given.steps)
    results = [{"layout": runner.layout, "decode_ms": statistics.median(runner.times),
                "min_ms": min(runner.times), "max_ms": max(runner.times),
                "ratio": statistics.median(map(truediv, runner.times, all_runners[0].times)),
                "logits_relative_error": error_of(found, logits[0]),
                "same_tokens": _alike(written, tokens[0])}
               for runner, found, written in zip(all_runners, logits, tokens, strict=True)]
    return {"dtype": given.dtype, "threads": given.threads, "past": given.past,
            "runs": given.runs, "steps": given.steps, "tokens": given.tokens, "results": results}


def _alike(found: Sequence[int], first: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    return next((i for i, (a, b) in enumerate(zip(found, first, strict=True)) if a != b),
                len(first))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--past", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = measure(given)
    print(f"{given.dtype}, {given.threads} threads: a decode step behind {given.past} tokens")
    for result in found["results"]:
        print("{layout:20} {decode_ms:7.2f} ms (least {min_ms:.2f})   x {ratio:.2f}   logits "
              "{logits_relative_error:.1e}   {same_tokens} tokens the same".format(**result))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
