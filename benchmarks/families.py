"""Every model family, random weights of hidden size 1024: graphdsl against transformers eager.

    python benchmarks/families.py [--dtype bf16|f32] [--threads 2] [--prompt 128] [--runs 7]
                                  [--only NAME ...] [--json PATH]

The models are small in depth alone (4 layers; Gemma 3 has 6, one of them global). transformers
writes each to a folder, from which ours is loaded. Decode steps one token at a time behind the
prompt; BERT reads the prompt and does not decode. The two take turns; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import Times, compare

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.hf.model import open_model
from graphdsl.layer import trace
from graphdsl.lazy import torch_dtype
from graphdsl.models.bert import Bert, Config, weight_names
from graphdsl.reference import error_of
from graphdsl.runtime.operator import Operator

SIZES: dict[str, Any] = {
    "vocab_size": 4000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "qwen2": {},
    "qwen3": {},
    "gpt2": {"n_embd": 1024, "n_layer": 4, "n_head": 16, "n_positions": 1024},
    "glm": {"partial_rotary_factor": 0.5, "attention_bias": True},
    "glm4": {"partial_rotary_factor": 0.5, "attention_bias": True},
    "gemma3_text": {"num_hidden_layers": 6, "sliding_window": 64},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
}


def config_of(name: str) -> Any:
    """The transformers config of a family; GPT-2 has names of its own for the sizes."""
    sizes = {k: v for k, v in SIZES.items() if name != "gpt2" or k.endswith(("_id", "vocab_size"))}
    return transformers.AutoConfig.for_model(name, **{**sizes, **FAMILIES[name]})


def decoder(name: str, options: BuildOptions, given: argparse.Namespace,
            folder: Path) -> tuple[Times, Times, float]:
    """A decoder family through a folder on disk."""
    dtype = torch_dtype(options.dtype)
    reference = transformers.AutoModelForCausalLM.from_config(config_of(name)).to(dtype).eval()
    reference.save_pretrained(folder)
    model = open_model(folder, options)
    ids = torch.randint(3, SIZES["vocab_size"], (1, given.prompt))
    return compare(model, reference, ids, given.steps, given.runs)


def encoder(options: BuildOptions, given: argparse.Namespace) -> tuple[float, float, float]:
    """Medians of BERT's forward on one prompt, ours and theirs, and how they differ."""
    made = transformers.BertConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"})
    reference = transformers.BertModel(made, add_pooling_layer=False)
    reference = reference.to(torch_dtype(options.dtype)).eval()
    config = Config(vocab=made.vocab_size, hidden=made.hidden_size, layers=made.num_hidden_layers,
                    heads=made.num_attention_heads, ffn=made.intermediate_size,
                    max_positions=made.max_position_embeddings)
    operator = Operator(build_graph(trace(Bert(config), options.dtype), options).path)
    weights = reference.state_dict()
    operator = operator.bind({a: weights[b] for a, b in weight_names(config).items()
                              if isinstance(b, str)})
    ids = torch.randint(3, made.vocab_size, (1, given.prompt))
    given_ids, types, mask = ids.int(), torch.zeros_like(ids).int(), torch.ones_like(ids).bool()
    places = torch.arange(given.prompt, dtype=torch.int32)[None]
    sides = (lambda: operator(given_ids, types, places, mask),
             lambda: reference(ids).last_hidden_state)
    taken: list[list[float]] = [[], []]
    with torch.inference_mode():
        difference = error_of(*(run().float() for run in sides))
        for _ in range(given.runs):
            for side, run in zip(taken, sides, strict=True):
                begin = time.perf_counter()
                run()
                side.append(time.perf_counter() - begin)
    return statistics.median(taken[0]), statistics.median(taken[1]), difference


def measured(given: argparse.Namespace, options: BuildOptions) -> list[dict[str, Any]]:
    """A row for every family that was asked for, printed as it comes."""
    rows = []
    for name in given.only or [*FAMILIES, "bert"]:
        torch.manual_seed(0)
        if name == "bert":
            ours, theirs, error = encoder(options, given)
            row = {"prefill": theirs / ours}
        else:
            with tempfile.TemporaryDirectory() as folder:
                mine, peer, error = decoder(name, options, given, Path(folder))
            row = {"prefill": peer.prefill / mine.prefill, "decode": peer.decode / mine.decode}
        rows.append({"family": name, "speedup": row, "difference": error})
        print(f"{name:12} " + "   ".join(f"{what} {ratio:6.2f}x" for what, ratio in row.items())
              + f"   outputs differ by {error:.1e}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=[*FAMILIES, "bert"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as cache:
        options = BuildOptions(cache=Path(cache), dtype=given.dtype, environment=dict(os.environ))
        rows = measured(given, options)
    if given.json:
        given.json.write_text(json.dumps({"dtype": given.dtype, "threads": given.threads,
                                          "prompt": given.prompt, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
