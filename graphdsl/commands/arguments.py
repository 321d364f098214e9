"""The command line: what each command takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Pair = tuple[str, str]
DTYPES = ("f32", "bf16", "f16")


def parser(version: str) -> argparse.ArgumentParser:
    """The parser of `graphdsl`; the name of the command is put into `command`."""
    root = argparse.ArgumentParser(
        prog="graphdsl", allow_abbrev=False,
        description="Builds layers written as plain maths into fused native operators.")
    root.add_argument("--version", action="version", version=f"graphdsl {version}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, add) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        add(command)
    return root


def _build(command: argparse.ArgumentParser) -> None:
    _file(command)
    _dtype(command)
    _quantize(command)
    _passes(command)
    command.add_argument("--out", type=Path, metavar="DIR",
                         help="put sources, library and manifest.json here")
    command.add_argument("--emit-only", action="store_true", help="stop before the compiler")
    command.add_argument("--verify", action="store_true",
                         help="run the graph before and after every pass and compare")


def _show(command: argparse.ArgumentParser) -> None:
    _file(command)
    _dtype(command)
    _quantize(command)
    _passes(command)
    which = command.add_mutually_exclusive_group()
    which.add_argument("--after", metavar="PASS", help="the graph after this pass")
    which.add_argument("--all", action="store_true", help="as traced and after every pass")
    command.add_argument("--format", choices=("text", "dot", "svg", "html"), default="text")


def _explain(command: argparse.ArgumentParser) -> None:
    _file(command)
    _dtype(command)
    _quantize(command)
    _passes(command)
    command.add_argument("--rule", metavar="NAME", help="only this rule")
    command.add_argument("--format", choices=("text", "json"), default="text")


def _run(command: argparse.ArgumentParser) -> None:
    _file(command)
    _dtype(command)
    _quantize(command)
    _passes(command)
    _lengths(command)
    command.add_argument("--seed", type=natural, default=0, metavar="N")


def _bench(command: argparse.ArgumentParser) -> None:
    _file(command)
    _dtype(command)
    _quantize(command)
    _passes(command)
    _lengths(command)
    command.add_argument("--seed", type=natural, default=0, metavar="N")
    command.add_argument("--vs", type=_rivals, default=(), metavar="eager,compile",
                         help="time peer(config) of FILE too, on the same inputs")
    command.add_argument("--seconds", type=positive_number, default=5.0, metavar="S",
                         help="time to spend on each implementation (default 5)")
    command.add_argument("--json", type=Path, metavar="PATH", help="write the figures here")
    command.add_argument("--roofline", action="store_true",
                         help="time every call, beside what this machine can do at most")
    command.add_argument("--plot", type=Path, metavar="FILE.svg",
                         help="with --roofline: draw it")
    command.add_argument("--fresh", action="store_true",
                         help="with --roofline: measure this machine again")


def _generate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL",
                         help="a Hugging Face folder, a .gguf file, or smollm2")
    prompt = command.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-ids", type=_ids, metavar='"1 2 3"', help="token ids as they are")
    prompt.add_argument("--prompts", type=Path, metavar="FILE",
                        help="a file with one prompt a line, run together")
    _backend(command)
    _dtype(command, "bf16")
    _quantize(command)
    _passes(command)
    command.add_argument("--tensor-parallel", type=positive, default=1, metavar="N",
                         help="split the model over N processes that torchrun has started")
    command.add_argument("--max-batch", type=positive, metavar="N",
                         help="the most texts that are decoded together (default 16)")
    command.add_argument("--blocks", type=positive, metavar="N",
                         help="KV blocks that they share (default: as many as they may need)")
    command.add_argument("--beams", type=positive, default=1, metavar="N",
                         help="the likeliest text by beam search over N")
    command.add_argument("--max-new-tokens", type=natural, default=128, metavar="N")
    command.add_argument("--greedy", action="store_true", help="always the most likely token")
    command.add_argument("--seed", type=natural, metavar="N")
    command.add_argument("--temperature", type=float, default=1.0, metavar="X")
    command.add_argument("--top-k", type=int, default=0, metavar="N")
    command.add_argument("--top-p", type=float, default=1.0, metavar="X")
    command.add_argument("--min-new-tokens", type=natural, default=0, metavar="N")
    command.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X")
    command.add_argument("--stop", action="append", default=[], metavar="TEXT",
                         help="end the text after TEXT; may be given again")
    command.add_argument("--raw", action="store_true",
                         help="the prompt is not put into the chat template")
    command.add_argument("--ids", action="store_true",
                         help="end with a line of the new token ids")


def _quantize_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL",
                         help="a Hugging Face folder, a .gguf file, or smollm2")
    command.add_argument("--text", type=Path, metavar="FILE", required=True,
                         help="a text like those that the model will see")
    command.add_argument("--out", type=Path, metavar="DIR", required=True,
                         help="the new folder")
    command.add_argument("--format", default="int4:128", metavar="FORMAT",
                         help="int4:128 (default), int4:32+offset, int8 and the like")
    command.add_argument("--tokens", type=positive, default=16384, metavar="N",
                         help="how much of the text is taken (default 16384)")
    command.add_argument("--window", type=positive, default=512, metavar="N",
                         help="tokens that are run as one piece (default 512)")


def _doctor(command: argparse.ArgumentParser) -> None:
    del command


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "build": ("build a DSL file into a native operator", _build),
    "show": ("print the graph of a DSL file, before or after passes", _show),
    "explain": ("say which fusions fired and which nearly did, and why not", _explain),
    "run": ("compare the built operator with the reference on random inputs", _run),
    "bench": ("time the built operator, and plain torch beside it", _bench),
    "generate": ("generate text with a real model", _generate),
    "quantize": ("round a model's weights to few bits, with a text to go by", _quantize_model),
    "doctor": ("check that everything needed is there", _doctor),
}


def _file(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE",
                         help="a Python file that defines a Layer, a Model or build()")
    _backend(command)
    command.add_argument("--set", type=_setting, action="append", default=[], dest="settings",
                         metavar="key=value", help="a field of the config; may be given again")


def _backend(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", default="cpu", metavar="NAME", help="default: cpu")
    command.add_argument("--soc", default="", metavar="NAME",
                         help="the chip to build for: on ascend 910b (default) or 310p")


def _dtype(command: argparse.ArgumentParser, usual: str = "f32") -> None:
    command.add_argument("--dtype", choices=DTYPES, help=f"default: {usual}, on ascend f16")


def _quantize(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quantize", metavar="FORMAT",
                         help="weights of linears and embeddings: int8, int4, int4:128, "
                              "int4:32+offset; with generate also file or none")
    command.add_argument("--act", choices=("int8", *DTYPES),
                         help="what quantised weights are multiplied with: the dtype (default), "
                              "or rows rounded to int8")


class _Passes(argparse.Action):
    """Options of passes, by pass; what is given later for the same pass is added. Those of
    `static`, which comes before the pipeline, are kept apart."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        name, options = values
        known = getattr(namespace, self.dest)
        if name == "static":
            namespace.static = {**namespace.static, **options}
        else:
            setattr(namespace, self.dest, {**known, name: {**known.get(name, {}), **options}})


class _Length(argparse.Action):
    """`--static 256` for `--pass static:length=256`."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        namespace.static = {**namespace.static, "length": str(values)}


def _passes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pass", type=_pass, action=_Passes, default={}, dest="passes",
                         metavar="NAME:key=value,...", help="options of a pass")
    command.add_argument("--static", type=positive, action=_Length, default={}, metavar="LENGTH",
                         help="graphs of this fixed length, for a prompt and for one token")


def _lengths(command: argparse.ArgumentParser) -> None:
    command.add_argument("--batch", type=positive, default=1, metavar="N")
    command.add_argument("--tokens", type=positive, default=1, metavar="N")
    command.add_argument("--past", type=natural, default=0, metavar="N",
                         help="tokens that the KV caches hold before")
    command.add_argument("--dim", type=_dim, action="append", default=[], dest="dims",
                         metavar="NAME=N", help="another size that is known only at a call, such "
                         "as the outputs of a model; may be given again")


def _setting(text: str) -> Pair:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return key, value


def _dim(text: str) -> tuple[str, int]:
    name, size = _setting(text)
    return name, positive(size)


def _pass(text: str) -> tuple[str, dict[str, str]]:
    name, _, rest = text.partition(":")
    if not name or not rest:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:key=value")
    return name, dict(_setting(part) for part in rest.split(",") if part)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is too small: at least {least}")
    return value


def natural(text: str) -> int:
    """A whole number of 0 or more."""
    return _whole(text, 0)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    return _whole(text, 1)


def positive_number(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _rivals(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [n for n in names if n not in ("eager", "compile")]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is neither eager nor compile")
    return names


def _ids(text: str) -> tuple[int, ...]:
    return tuple(natural(part) for part in text.replace(",", " ").split())
