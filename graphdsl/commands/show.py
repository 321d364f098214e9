"""graphdsl show: the graph of a DSL file, as traced or after passes."""

from __future__ import annotations

import argparse
import shutil
import subprocess

from graphdsl.backend import find_backend
from graphdsl.commands.page import page
from graphdsl.commands.session import Session, say
from graphdsl.errors import GraphError, ToolError
from graphdsl.ir import Graph
from graphdsl.passes.pipeline import PIPELINE, run_pipeline
from graphdsl.printer import dot, text


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints one graph, or with --all every stage under a heading."""
    names = [each.name for each in PIPELINE]
    if args.after and args.after not in names:
        raise GraphError(f"no pass {args.after}", hint=f"passes: {', '.join(names)}")
    source = session.source(args)
    stages = [("trace", source.graph)]
    if args.after or args.all:
        run_pipeline(source.graph, find_backend(args.backend).target, dict(args.passes),
                     observe=lambda name, graph: stages.append((name, graph)))
    wanted = stages if args.all else [s for s in stages if s[0] == (args.after or "trace")]
    if args.format == "html":
        say(page(f"{source.name} ({args.file.name})", wanted))
    elif args.all:
        _print_all(wanted, args.format, session)
    else:
        say(_render(wanted[0][1], args.format, session))
    return 0


def _print_all(stages: list[tuple[str, Graph]], form: str, session: Session) -> None:
    before: Graph | None = None
    comment = {"text": "== {} ==", "dot": "// {}", "svg": "<!-- {} -->"}[form]
    for name, graph in stages:
        changed = graph is not before
        say(comment.format(name if changed else f"{name}: no change"))
        if changed:
            say(_render(graph, form, session))
        before = graph


def _render(graph: Graph, form: str, session: Session) -> str:
    if form == "text":
        return text(graph)
    drawing = dot(graph)
    return drawing if form == "dot" else _svg(drawing, session)


def _svg(drawing: str, session: Session) -> str:
    command = shutil.which("dot", path=session.environment.get("PATH"))
    if not command:
        raise ToolError("--format svg needs Graphviz, and there is no program `dot`",
                        "dot -Tsvg", "install the package graphviz, or use --format dot")
    done = subprocess.run([command, "-Tsvg"], input=drawing, capture_output=True, text=True,
                          check=False, env=dict(session.environment))
    if done.returncode != 0:
        raise ToolError("Graphviz failed", f"{command} -Tsvg", done.stderr)
    return done.stdout
