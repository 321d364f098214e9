"""SmolLM2 with prompts of different lengths: one after the other, and together in an engine.

    python benchmarks/batching.py [--dtype bf16|f32] [--threads 2] [--new 64] [--prompts 8]
                                  [--chunk 128] [--runs 3] [--json PATH]

Both sides are in one process and take turns, prompts included: one after the other each prompt is
generated alone with contiguous caches, together an engine decodes all over paged ones. Every text
is greedy and has `--new` tokens. Printed are new tokens per second of all texts, medians over the
turns with the least and the most, the median of the ratio within a turn, and how many of the new
tokens are the same up to the first that is not. (In 16 bits sums in another order are rounded to
other logits, so that two tokens that are nearly as likely may swap.)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from graphdsl.builder import BuildOptions
from graphdsl.hf.model import LanguageModel, open_model
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.sampling import Sampling

PROMPTS = (
    "What is gravity?",
    "Write a short poem about the sea in autumn, with gulls, two boats and a lighthouse in it.",
    "Name three rivers.",
    "Explain to a child of ten years why the sky is blue, and why it is red in the evening.",
    "How do I sort a list of names in Python?",
    "Hello!",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take, and how fast is it if the "
    "way is 287 kilometres long? Show every step of what you compute.",
    "Which animals sleep in winter, and what do they live on then?",
)


def alone(model: LanguageModel, prompts: Sequence[Sequence[int]],
          sampling: Sampling) -> tuple[list[tuple[int, ...]], float]:
    """The new ids of every prompt, and the seconds that all took."""
    begin = time.perf_counter()
    found = [model.generate([prompt], sampling=sampling).ids[0] for prompt in prompts]
    return found, time.perf_counter() - begin


def together(model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling,
             chunk: int) -> tuple[list[tuple[int, ...]], float]:
    """The same by a new engine."""
    begin = time.perf_counter()
    size = model.operator.block
    blocks = sum(-(-(len(prompt) + sampling.max_new_tokens) // size) for prompt in prompts)
    engine = model.engine(blocks, max_batch=len(prompts), chunk=chunk)
    requests = [engine.add(prompt, sampling) for prompt in prompts]
    for _ in engine.run():
        pass
    return [request.ids for request in requests], time.perf_counter() - begin


def alike(found: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    return next((i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b),
                len(found))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    home = os.environ.get("GRAPHDSL_CACHE") or str(Path.home() / ".cache" / "graphdsl")
    options = BuildOptions(cache=Path(home), dtype=given.dtype, environment=dict(os.environ))
    model = open_model("smollm2", options, quantize=given.quantize)
    paged = model.paged
    texts = [PROMPTS[i % len(PROMPTS)] for i in range(given.prompts)]
    prompts = [encode_prompt(model.tokenizer, text) for text in texts]
    sampling = Sampling(given.new, greedy=True)
    warm = Sampling(2, greedy=True)
    alone(model, prompts[:1], warm)
    together(paged, prompts, warm, given.chunk)
    rates: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(given.runs):
        wanted, slow = alone(model, prompts, sampling)
        found, fast = together(paged, prompts, sampling, given.chunk)
        rates["alone"].append(sum(map(len, wanted)) / slow)
        rates["together"].append(sum(map(len, found)) / fast)
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    same = [alike(a, b) for a, b in zip(found, wanted, strict=True)]
    return {"dtype": given.dtype, "threads": given.threads, "chunk": given.chunk,
            "prompts": [len(prompt) for prompt in prompts], "new": given.new, "rates": rates,
            "ratios": ratios, "ratio": statistics.median(ratios), "same_tokens": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = measure(given)
    print(f"{found['dtype']}, {found['threads']} threads, prompts of {found['prompts']} tokens, "
          f"{found['new']} new ones each")
    for name, rates in found["rates"].items():
        print(f"{name:9} {statistics.median(rates):7.1f} tokens/s   ({min(rates):.1f} to "
              f"{max(rates):.1f})")
    print(f"ratio     {found['ratio']:7.2f}            ({min(found['ratios']):.2f} to "
          f"{max(found['ratios']):.2f})   the same: {found['same_tokens']} of {found['new']}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
