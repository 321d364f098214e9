"""graphdsl show: the graph of a DSL file, as traced or after passes."""

from __future__ import annotations

import argparse

from graphdsl.backend import Backend, find_backend
from graphdsl.commands.session import Session, say
from graphdsl.errors import GraphError
from graphdsl.ir import Graph
from graphdsl.passes.pipeline import Lowered, count, passes_for, run_pipeline
from graphdsl.printer import dot, text
from graphdsl.seeing.code import generated_code
from graphdsl.seeing.drawing import svg
from graphdsl.seeing.page import page
from graphdsl.seeing.stages import Place, Stage, stages_of
from graphdsl.source import Source

FORMS = {"text": text, "dot": dot, "svg": svg}
HEADINGS = {"text": "== {} ==", "dot": "// {}", "svg": "<!-- {} -->"}


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints one graph, or with --all every stage under a heading; as html, one page."""
    backend = find_backend(args.backend, args.soc)
    names = [each.name for each in passes_for(backend.target)]
    if args.after and args.after not in names:
        raise GraphError(f"no pass {args.after}", hint=f"passes: {', '.join(names)}")
    if args.format == "html" and session.progress.is_terminal:
        raise GraphError("--format html is a page for a browser, not for a terminal",
                         hint=f"graphdsl show {args.file} --all --format html > page.html")
    source = session.source(args)
    graphs = [("trace", source.graph)]
    lowered = Lowered(source.graph)
    if args.after or args.all:
        lowered = run_pipeline(source.graph, backend.target, dict(args.passes),
                               observe=lambda name, graph: graphs.append((name, graph)))
    wanted = graphs if args.all else [g for g in graphs if g[0] == (args.after or "trace")]
    if args.format == "html":
        say(_page(args, source, wanted, lowered, backend))
    elif args.all:
        _print_all(wanted, args.format)
    else:
        say(FORMS[args.format](wanted[0][1]))
    return 0


def _print_all(stages: list[tuple[str, Graph]], form: str) -> None:
    before: Graph | None = None
    for name, graph in stages:
        changed = graph is not before
        say(HEADINGS[form].format(name if changed else f"{name}: no change"))
        if changed:
            say(FORMS[form](graph))
        before = graph


def _page(args: argparse.Namespace, source: Source, graphs: list[tuple[str, Graph]],
          lowered: Lowered, backend: Backend) -> str:
    stages = stages_of(graphs)
    code, code_note = _code(backend, stages[-1], lowered)
    counts = [count(stage.graph) for stage in stages]
    passed = f", {counts[-1]} after all passes" if args.all else ""
    note = f"{args.file.name}, {source.dtype}, backend {args.backend}: {counts[0]} nodes{passed}"
    return page(source.name, note, stages, lowered, code, code_note)


def _code(backend: Backend, stage: Stage, lowered: Lowered) -> tuple[dict[Place, list[str]], str]:
    """What is generated for the places of the last stage, and why there is nothing."""
    if stage.graph is not lowered.graph or not lowered.report:
        return {}, "generated code: graphdsl show FILE --all --format html"
    try:
        return generated_code(stage, lowered, backend), ""
    except GraphError as error:
        return {}, f"no generated code: {error}"
