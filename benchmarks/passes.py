"""How long the passes take for a Llama of many layers, unrolled and rolled into a repeat.

    python benchmarks/passes.py [--layers 80] [--runs 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping

from graphdsl.backends.cpu.backend import CPU
from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.models.llama import Config, Llama
from graphdsl.passes.pipeline import run_pipeline

FORMS: dict[str, Mapping[str, Mapping[str, str]]] = {
    "unrolled": {"roll": {"min_turns": "1000000"}}, "rolled": {}}


def seconds(graph: Graph, options: Mapping[str, Mapping[str, str]]) -> float:
    """Processor time of one run of the whole pipeline."""
    begin = time.process_time()
    run_pipeline(graph, CPU().target, options)
    return time.process_time() - begin


def main() -> None:
    """A line a form and number of layers: the time has to grow as the layers do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    for name, options in FORMS.items():
        for layers in (given.layers // 4, given.layers // 2, given.layers):
            graph = trace(Llama(Config(layers=layers)))
            taken = [seconds(graph, options) for _ in range(given.runs)]
            print(f"{name:9} {layers:4} layers   median {statistics.median(taken):.2f} s   "
                  f"min {min(taken):.2f}   max {max(taken):.2f}")


if __name__ == "__main__":
    main()
