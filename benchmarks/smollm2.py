"""SmolLM2 on the CPU: tokens per second of graphdsl and of transformers eager, same weights.

    python benchmarks/smollm2.py [--dtype f32|bf16] [--threads 2] [--prompt 512] [--runs 7]

Decode steps one token at a time behind a prompt; prefill takes the whole prompt and gives the
logits of its last token. The two take turns; medians and their ratio are printed, as JSON with
--json PATH. Both sides' logits are compared first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from graphdsl.builder import BuildOptions
from graphdsl.hf.model import LanguageModel, open_model
from graphdsl.lazy import torch_dtype
from graphdsl.reference import error_of


def peer(model: LanguageModel, dtype: torch.dtype) -> Any:
    """transformers' LlamaForCausalLM with the same weights."""
    c = model.checkpoint.config
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        intermediate_size=c.ffn, rms_norm_eps=c.eps, max_position_embeddings=c.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": c.theta},
        tie_word_embeddings=c.tied))
    weights = {n: model.checkpoint.tensor(n) for n in model.checkpoint.names()}
    made.load_state_dict(weights, strict=False)
    made.tie_weights()
    return made.to(dtype).eval()


def our_run(model: LanguageModel, ids: torch.Tensor, steps: int) -> tuple[float, float, Any]:
    """Seconds of the prompt's step and of one decode step, and the prompt's logits."""
    session = model.start(1, ids.shape[1] + steps)
    positions = torch.arange(ids.shape[1], dtype=torch.int32)[None]
    begin = time.perf_counter()
    logits = session.step(ids, positions).clone()
    prefill = time.perf_counter() - begin
    begin = time.perf_counter()
    for step in range(steps):
        session.step(ids[:, :1], positions[:, -1:] + 1 + step)
    return prefill, (time.perf_counter() - begin) / steps, logits


def their_run(model: Any, ids: torch.Tensor, steps: int) -> tuple[float, float, Any]:
    begin = time.perf_counter()
    out = model(ids, logits_to_keep=1, use_cache=True)
    prefill = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(steps):
        model(ids[:, :1], past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    return prefill, (time.perf_counter() - begin) / steps, out.logits[:, -1]


def measure(dtype: str, prompt: int, steps: int, runs: int) -> dict[str, Any]:
    home = os.environ.get("GRAPHDSL_CACHE") or str(Path.home() / ".cache" / "graphdsl")
    model = open_model("smollm2", BuildOptions(cache=Path(home), dtype=dtype,
                                               environment=dict(os.environ)))
    reference = peer(model, torch_dtype(dtype))
    torch.manual_seed(0)
    ids = torch.randint(0, model.vocab, (1, prompt))
    sides: dict[str, Callable[[], tuple[float, float, Any]]] = {
        "graphdsl": lambda: our_run(model, ids, steps),
        "transformers": lambda: their_run(reference, ids, steps)}
    with torch.inference_mode():
        agreement = error_of(*(run()[2].float() for run in sides.values()))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(runs):
            for name, run in sides.items():
                taken[name].append(run()[:2])
    results = {}
    for name, pairs in taken.items():
        prefill, decode = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        results[name] = {"prefill_tokens_per_s": prompt / prefill,
                         "decode_tokens_per_s": 1 / decode}
    return {"dtype": dtype, "prompt": prompt, "threads": torch.get_num_threads(), "runs": runs,
            "logits_relative_error": agreement, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = measure(given.dtype, given.prompt, given.steps, given.runs)
    ours, theirs = (found["results"][name] for name in ("graphdsl", "transformers"))
    print(f"{given.dtype}, {given.threads} threads, prompt {given.prompt}: logits differ by "
          f"{found['logits_relative_error']:.1e}")
    for what in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        print(f"{what:22} graphdsl {ours[what]:8.1f}   transformers {theirs[what]:8.1f}   "
              f"ratio {ours[what] / theirs[what]:.2f}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
