"""graphdsl build: a DSL file into a native operator."""

from __future__ import annotations

import argparse
from dataclasses import replace

from graphdsl.builder import build_graph
from graphdsl.commands.session import Session, check_folder, say


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints a line a stage and ends with `built NAME for BACKEND in S s: PATH`."""
    folder = args.out or session.cache
    check_folder("--out" if args.out else "GRAPHDSL_CACHE", folder)
    source = session.source(args)
    options = replace(session.options(args, source.dtype), out=args.out, verify=args.verify,
                      emit_only=args.emit_only, progress=session.progress.done)
    session.progress.done("trace", f"{source.name}: {len(source.graph.nodes)} nodes")
    # Tracing again happens inside of --verify, where references may import the file's neighbours.
    with source.importing():
        built = build_graph(source.graph, options)
    session.progress.clear()
    verb = "emitted" if args.emit_only else "built"
    say(f"{verb} {built.name} for {args.backend} in {built.seconds:.2f} s: {built.path}")
    return 0
