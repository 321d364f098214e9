"""graphdsl generate: text from a real model, as it comes."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphdsl.backend import find_backend
from graphdsl.builder import BuildOptions, check_options
from graphdsl.commands.batch import run_engine, say_texts, wants_engine
from graphdsl.commands.parallel import check_launch, joined, passes_of
from graphdsl.commands.session import Session, check_folder, say
from graphdsl.errors import GraphError
from graphdsl.hf.generate import Step, StepModel, collect, generate
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.sampling import Sampling
from graphdsl.hf.static import StaticModel
from graphdsl.hf.stream import TextStream
from graphdsl.lazy import torch
from graphdsl.passes.static import static_parts
from graphdsl.quant import Quant

if TYPE_CHECKING:
    from graphdsl.hf.model import LanguageModel
    from graphdsl.runtime.group import Group


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints the text of every prompt, then the speed, then with --ids the new ids."""
    launch = session.launch if args.tensor_parallel > 1 else None
    check_launch(args.tensor_parallel, launch)
    with joined(launch) as group:
        return _run(args, session, group)


def _run(args: argparse.Namespace, session: Session, group: Group | None) -> int:
    texts = _texts(args)
    backend = find_backend(args.backend, args.soc)
    options = session.options(args, args.dtype or backend.target.model_dtype)
    options = replace(options, passes=passes_of(options.passes, group))
    check_options(options)
    static = static_parts(args.static, backend.target)
    if static and group is not None:
        raise GraphError("--static and --tensor-parallel are both given",
                         hint="a model of fixed length runs in one process")
    engine = wants_engine(args, options, backend.target)
    check_folder("GRAPHDSL_CACHE", session.cache)
    Sampling(**_choices(args))
    opened = _open(args, session, options, group)
    opened = opened.paged if engine else opened
    model = StaticModel(opened, static[0].length, static[0].cache) if static else opened
    # Ids in and ids out need no tokenizer, so a model without one will do.
    has_text = not (args.prompt_ids is not None and args.ids)
    tokenizer: Any = None
    if args.stop:  # which transformers finds in its own tokenizer's vocabulary
        tokenizer = model.tokenizer
    elif has_text:
        tokenizer = model.plain_tokenizer
    if texts:
        prompts = [encode_prompt(tokenizer, text, args.raw) for text in texts]
    else:
        prompts = [list(args.prompt_ids)]
    sampling = Sampling(**_choices(args), eos=model.checkpoint.settings.eos)
    _build(model, session)
    seed = args.seed
    if group is not None:  # every rank draws the same tokens
        group.ready()
        seed = group.agreed(torch.seed() % (1 << 31) if seed is None else seed)
    if engine:
        found = run_engine(args, opened, prompts, sampling, seed, tokenizer, has_text)
    else:
        found = _run_batch(model, prompts, sampling, seed, tokenizer, has_text)
    for ids in found if args.ids else ():
        say(" ".join(map(str, ids)))
    return 0


def _build(model: LanguageModel | StaticModel, session: Session) -> None:
    """Builds before the clock of the first step runs; says how weights are quantised."""
    session.progress.begin("build")
    weights = model.operator.manifest["weights"]
    session.progress.clear()
    formats = Counter(str(Quant(**w["quant"])) for w in weights if "quant" in w)
    if formats:
        session.progress.done("weights", ", ".join(f"{n} {quant}" for quant, n in formats.items()))


def _run_batch(model: StepModel, prompts: Sequence[Sequence[int]], sampling: Sampling,
               seed: int | None, tokenizer: Any, has_text: bool) -> list[tuple[int, ...]]:
    """All prompts as one batch: prints their texts and the speed, and gives their new ids."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    steps = generate(model, prompts, sampling, generator=generator, tokenizer=tokenizer)
    if has_text and len(prompts) == 1:
        steps = _Shown(TextStream(tokenizer, sampling.stop_strings)).through(steps)
    with torch.inference_mode():
        completion = collect(prompts, steps)
    say_texts(completion.ids, tokenizer if has_text else None)
    say(completion.speed.summary())
    return list(completion.ids)


def _texts(args: argparse.Namespace) -> list[str]:
    """The prompts as text; none where ids were given. Raises GraphError for a bad file."""
    if args.prompt is not None:
        return [args.prompt]
    if args.prompt_ids is not None:
        if not args.prompt_ids:
            raise GraphError("--prompt-ids: no id is given", hint='--prompt-ids "1 2 3"')
        return []
    try:
        lines = args.prompts.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise GraphError(f"--prompts {args.prompts}: cannot be read: {why}") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise GraphError(f"--prompts {args.prompts}: it holds no prompt",
                         hint="write one prompt a line")
    return texts


def _choices(args: argparse.Namespace) -> dict[str, Any]:
    return {"max_new_tokens": args.max_new_tokens, "greedy": args.greedy,
            "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p,
            "min_new_tokens": args.min_new_tokens, "stop_strings": tuple(args.stop),
            "repetition_penalty": args.repetition_penalty}


def _open(args: argparse.Namespace, session: Session, options: BuildOptions,
          group: Group | None) -> LanguageModel:
    from graphdsl.hf.model import open_model

    session.progress.begin("model")
    model = open_model(_name(args.model), options, quantize=args.quantize, act=args.act,
                       group=group)
    session.progress.done("model", f"{model.checkpoint.path.name}, "
                                   f"{model.checkpoint.settings.layers} layers, {options.dtype}")
    return model


def _name(model: str) -> str | Path:
    return Path(model).expanduser() if "/" in model else model


@dataclass(frozen=True)
class _Shown:
    """Writes the text of the first row while its ids come."""

    stream: TextStream

    def through(self, steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            if step.fresh[0]:
                self._write(self.stream.put(step.ids[0]))
            yield step
        self._write(self.stream.finish() + "\n")

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
