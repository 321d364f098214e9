"""graphdsl show: the graph of a DSL file, as traced or after passes."""

from __future__ import annotations

import argparse
import shutil
import subprocess

from graphdsl.backend import find_backend
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
    if args.all:
        _print_all(stages, args.format, session)
        return 0
    wanted = args.after or "trace"
    say(_render(dict(stages)[wanted], args.format, session))
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
