"""graphdsl generate with an engine: many prompts together, and beams."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphdsl.builder import BuildOptions
from graphdsl.commands.session import say
from graphdsl.errors import GraphError
from graphdsl.hf.generate import budget_of, check_prompts
from graphdsl.hf.sampling import Sampling
from graphdsl.hf.stream import TextStream
from graphdsl.passes.base import Target
from graphdsl.serve.engine import MAX_BATCH, Engine, Event
from graphdsl.serve.requests import Request, most_blocks

if TYPE_CHECKING:
    from graphdsl.hf.model import LanguageModel

DRAWN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": None}
"""The options that say how tokens are drawn, as they are where they were not given."""


def wants_engine(args: argparse.Namespace, options: BuildOptions, target: Target) -> bool:
    """Whether an engine is to run the prompts: those of a file do not need one where the caches are
    to have another policy. Raises GraphError for options that contradict each other."""
    asked = args.beams > 1 or args.max_batch is not None or args.blocks is not None
    if asked and args.static:
        raise GraphError("--static runs one batch of fixed length, without --beams, --max-batch "
                         "and --blocks", hint="leave out one of them")
    drawn = [name for name, usual in DRAWN.items() if getattr(args, name) != usual]
    if args.beams > 1 and drawn:
        option = "--" + drawn[0].replace("_", "-")
        raise GraphError(f"--beams {args.beams} looks for the likeliest text, and {option} is for "
                         "texts that are drawn", hint=f"leave out --beams or {option}")
    policy = options.passes.get("kv_layout", {}).get("policy") or "paged"
    able = policy == "paged" and "paged" in target.kv_policies
    return asked or (args.prompts is not None and not args.static and able)


def run_engine(args: argparse.Namespace, model: LanguageModel, prompts: Sequence[Sequence[int]],
               sampling: Sampling, seed: int | None, tokenizer: Any,
               has_text: bool) -> list[tuple[int, ...]]:
    """Prints the texts and the speed, and gives the new ids of every prompt. The text of a single
    one is written while it comes. Raises GraphError before the first step for a prompt that the
    model or the pool has no room for."""
    chosen = replace(sampling, greedy=True) if args.beams > 1 else sampling
    engine = _engine(args, model, prompts, chosen)
    requests = [engine.add(prompt, chosen, seed=seed, beams=args.beams) for prompt in prompts]
    events: Iterator[Event] = engine.run()
    if has_text and len(prompts) == 1:
        events = _shown(events, TextStream(tokenizer, sampling.stop_strings))
    for _ in events:
        pass
    found = [request.ids for request in requests]
    say_texts(found, tokenizer if has_text else None)
    say(_summary(engine, requests))
    return found


def say_texts(found: Sequence[Sequence[int]], tokenizer: Any) -> None:
    """The texts of several prompts; that of a single one was printed while it came."""
    if tokenizer and len(found) > 1:
        for i, ids in enumerate(found):
            say(f"[{i + 1}] {tokenizer.decode(list(ids), skip_special_tokens=True)}")


def _engine(args: argparse.Namespace, model: LanguageModel, prompts: Sequence[Sequence[int]],
            sampling: Sampling) -> Engine:
    """An engine with the blocks that were asked for, or with as many as all rows that run at once
    may need."""
    check_prompts(model, prompts, sampling)
    rows = args.max_batch or max(MAX_BATCH, args.beams)
    size = max(model.operator.block, 1)
    needs = sorted(most_blocks(len(prompt), max(budget_of(model, len(prompt), sampling), 1),
                               args.beams, size) for prompt in prompts)
    at_once = max(rows // args.beams, 1)
    return Engine(model, args.blocks or sum(needs[-at_once:]), max_batch=rows, sampling=sampling,
                  tokenizer=lambda: model.tokenizer)


def _shown(events: Iterator[Event], stream: TextStream) -> Iterator[Event]:
    """Writes the text of the only request."""
    for event in events:
        sys.stdout.write("".join(map(stream.put, event.ids)))
        sys.stdout.flush()
        yield event
    sys.stdout.write(stream.finish() + "\n")



def _summary(engine: Engine, requests: Sequence[Request]) -> str:
    """One line for people."""
    taken = sum(len(request.prompt) for request in requests)
    new = sum(len(request.ids) for request in requests)
    rate = new / max(engine.totals.seconds, 1e-9)
    line = f"prompts: {len(requests)} of {taken} tokens; {new} new tokens at {rate:.1f} tokens/s"
    waited = engine.scheduler.put_back
    return line + (f"; put back {waited} times, for want of blocks" if waited else "")


__all__ = ["run_engine", "wants_engine"]
