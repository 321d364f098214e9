"""Perplexity of a model on a text, of ours in several forms and of llama.cpp on the same ids.

    python benchmarks/perplexity.py TEXT [--model smollm2] [--forms bf16,int8,int4:32] \
        [--gguf FILE]... [--tokens 8192] [--window 512] [--rows 8]

The text is cut into windows of `--window` ids that begin afresh, each behind the model's first
token where it has one; all ids but the first of a window count. `--forms` are dtypes, "file" (the
weights as the model's file has them) or formats that weights are rounded to when they are loaded,
with `*int8` behind them for activations in 8 bits (bf16 without). With `--rows` a window is fed in
steps of so many ids, as they are when text is made. Every GGUF file is run by llama.cpp, where
llama_cpp is installed. Debian's package bible-kjv-text has a public-domain text.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

import graphdsl
from graphdsl.hf.model import LanguageModel

FLOATS = ("f32", "bf16")
Windows = list[list[int]]


def windows_of(text: str, model: LanguageModel, tokens: int, length: int) -> Windows:
    """The ids of a text in windows of the same length; a rest that is shorter is left out."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    first = model.tokenizer.bos_token_id
    step = length - 1 if first is not None else length
    parts = [ids[i:i + step] for i in range(0, len(ids) - step + 1, step)]
    return [[first, *part] if first is not None else part for part in parts]


def negative_log_likelihood(logits: torch.Tensor, ids: list[int]) -> float:
    """The sum over all ids but the first; logits [tokens, vocab]."""
    chosen = torch.tensor(ids[1:])
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), chosen, reduction="sum"))


def logits_of(model: LanguageModel, ids: list[int], rows: int) -> torch.Tensor:
    """[tokens, vocab], in steps of `rows` ids; all at once with 0."""
    if not rows:
        return model.logits(torch.tensor([ids]))[0]
    state, parts = model.operator.new_state(1, len(ids)), []
    for at in range(0, len(ids), rows):
        given = torch.tensor([ids[at:at + rows]], dtype=torch.int32)
        here = torch.arange(given.shape[1], dtype=torch.int32)[None]
        parts.append(model.operator(given, here + at, here, state=state)[0])
    return torch.cat(parts)


def of_ours(model: LanguageModel, windows: Windows, rows: int) -> float:
    with torch.inference_mode():
        total = sum(negative_log_likelihood(logits_of(model, ids, rows), ids) for ids in windows)
    return math.exp(total / sum(len(ids) - 1 for ids in windows))


def of_llama_cpp(path: Path, windows: Windows, threads: int) -> float:
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=max(map(len, windows)), logits_all=True,
                            n_threads=threads, n_threads_batch=threads, verbose=False)
    total = 0.0
    for ids in windows:
        llama.reset()
        llama.eval(ids)
        total += negative_log_likelihood(torch.from_numpy(llama.scores[:len(ids)].copy()), ids)
    return math.exp(total / sum(len(ids) - 1 for ids in windows))


def opened(name: str, form: str) -> LanguageModel:
    if form in FLOATS:
        return graphdsl.load_model(name, dtype=form, quantize="none")
    quantize, _, act = form.partition("*")
    return graphdsl.load_model(name, dtype="bf16", quantize=quantize, act=act or None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--forms", default="bf16")
    parser.add_argument("--gguf", type=Path, action="append", default=[])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, float] = {}
    windows: Windows = []
    for form in args.forms.split(","):
        model = opened(args.model, form)
        windows = windows or windows_of(args.text.read_text(), model, args.tokens, args.window)
        results[f"graphdsl {form}"] = of_ours(model, windows, args.rows)
        print(f"graphdsl {form:<24} {results[f'graphdsl {form}']:9.4f}", flush=True)
    for path in args.gguf:
        results[f"llama.cpp {path.name}"] = of_llama_cpp(path, windows, torch.get_num_threads())
        print(f"llama.cpp {path.name:<23} {results[f'llama.cpp {path.name}']:9.4f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"ids": sum(map(len, windows)), **results}, indent=1))


if __name__ == "__main__":
    main()
