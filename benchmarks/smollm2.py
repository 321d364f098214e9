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
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import compare

from graphdsl.builder import BuildOptions
from graphdsl.hf.model import LanguageModel, open_model
from graphdsl.lazy import torch_dtype


def peer(model: LanguageModel, dtype: torch.dtype) -> Any:
    """transformers' LlamaForCausalLM with the same weights."""
    c, settings = model.config, model.checkpoint.settings
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        intermediate_size=c.ffn, rms_norm_eps=c.eps,
        max_position_embeddings=settings.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": c.theta},
        tie_word_embeddings=c.tied))
    weights = {n: model.checkpoint.tensor(n) for n in model.checkpoint.names()}
    made.load_state_dict(weights, strict=False)
    made.tie_weights()
    return made.to(dtype).eval()


def measure(dtype: str, prompt: int, steps: int, runs: int) -> dict[str, Any]:
    home = os.environ.get("GRAPHDSL_CACHE") or str(Path.home() / ".cache" / "graphdsl")
    options = BuildOptions(cache=Path(home), dtype=dtype, environment=dict(os.environ))
    model = open_model("smollm2", options, quantize="none")  # the same weights as transformers has
    reference = peer(model, torch_dtype(dtype))
    torch.manual_seed(0)
    ids = torch.randint(0, model.vocab, (1, prompt))
    ours, theirs, agreement = compare(model, reference, ids, steps, runs)
    results = {name: {"prefill_tokens_per_s": prompt / times.prefill,
                      "decode_tokens_per_s": 1 / times.decode}
               for name, times in (("graphdsl", ours), ("transformers", theirs))}
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
