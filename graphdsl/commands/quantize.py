"""graphdsl quantize: a model's weights rounded with a text to go by, as a folder of its own."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphdsl.commands.session import Session, say
from graphdsl.errors import GraphError
from graphdsl.lazy import torch
from graphdsl.quant import Quant, asked
from graphdsl.staging import publish, staging


def run(args: argparse.Namespace, session: Session) -> int:
    """Writes the folder, and says how many weights were quantised."""
    from graphdsl.hf.checkpoint import open_checkpoint
    from graphdsl.hf.fetch import resolve_model
    from graphdsl.hf.gptq_folder import quantised_weights, write_folder
    from graphdsl.hf.tokenizer import load_tokenizer

    quant = _quant(args.format)
    out = _new_folder(args.out)
    text = _text(args.text)
    checkpoint = open_checkpoint(resolve_model(args.model, session.cache))
    tokenizer = load_tokenizer(checkpoint.path, session.cache)
    texts = _windows(text, args, tokenizer, checkpoint.settings.max_positions)
    found = quantised_weights(checkpoint, quant, texts, session.progress.begin)
    session.progress.clear()
    with staging(out.parent) as staged:
        write_folder(checkpoint, found, quant, tokenizer, staged)
        publish(staged, out)
    say(f"{len(found)} weights in {quant}, by {len(texts) * args.window} tokens: {out}")
    return 0


def _quant(text: str) -> Quant:
    """The format; files of GPTQ have f16 scales. Raises GraphError for one that they have not."""
    quant = asked(text, None, "f32")
    if quant is None:
        raise GraphError(f"--format {text}: this is no format", hint="int4:128, int8")
    return replace(quant, scale="f16")


def _new_folder(path: Path) -> Path:
    if path.exists():
        raise GraphError(f"--out {path}: it is there already", hint="give a new folder")
    if not path.absolute().parent.is_dir():
        raise GraphError(f"--out {path}: there is no folder {path.absolute().parent}")
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise GraphError(f"--text {path}: cannot be read: {why}") from None


def _windows(text: str, args: argparse.Namespace, tokenizer: Any,
             longest: int) -> list[torch.Tensor]:
    """The first ids of a text in windows of one length. Raises GraphError where it is too short or
    the window too long for the model."""
    if args.window > longest:
        raise GraphError(f"--window {args.window}: the model takes at most {longest} tokens",
                         hint=f"--window {longest}")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][:args.tokens])
    count = len(ids) // args.window
    if count == 0:
        raise GraphError(f"--text {args.text}: {len(ids)} tokens, wanted at least {args.window}",
                         hint="a text of some thousand tokens like those that the model will see")
    return list(ids[:count * args.window].reshape(count, 1, args.window))
