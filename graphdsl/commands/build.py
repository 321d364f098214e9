"""graphdsl build: a DSL file into a native operator."""

from __future__ import annotations

import argparse
from dataclasses import replace

from graphdsl.builder import build_graph
from graphdsl.commands.session import Session, check_folder, say


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints a line a stage and ends with `built NAME for BACKEND in S s: PATH`; with --static one
    such line a part, each in a folder of its name below --out."""
    folder = args.out or session.cache
    check_folder("--out" if args.out else "GRAPHDSL_CACHE", folder)
    sources = session.sources(args)
    for source in sources:
        out = args.out / source.name if args.out and len(sources) > 1 else args.out
        options = replace(session.options(args, source.dtype), out=out, verify=args.verify,
                          emit_only=args.emit_only, progress=session.progress.done)
        session.progress.done("trace", f"{source.name}: {len(source.graph.nodes)} nodes")
        # Tracing again happens inside of --verify, where references may import the file's
        # neighbours.
        with source.importing():
            built = build_graph(source.graph, options)
        session.progress.clear()
        verb = "emitted" if args.emit_only else "built"
        say(f"{verb} {built.name} for {args.backend} in {built.seconds:.2f} s: {built.path}")
    return 0
