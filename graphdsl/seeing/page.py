"""The page of `graphdsl show --format html`: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from graphdsl.ir import Node, Value
from graphdsl.passes.pipeline import Lowered, PassReport
from graphdsl.printer import operands_text, outputs_text, types_text
from graphdsl.seeing.drawing import TEMPLATES, Box, svg, templates
from graphdsl.seeing.facts import Reporter, row_numbers
from graphdsl.seeing.sites import Entry, entry_text, is_distant
from graphdsl.seeing.stages import Place, Stage

SCRIPTS = ("data.js", "panel.js", "canvas.js", "page.js")
LEAVES = ("input", "state", "param")
FOLDED = 4
"""Leaves of a kind that are listed at once; more are behind their number."""


@dataclass
class Row:
    """A line of the list. `number` is its place in the stage's facts."""

    number: int
    made: str
    op: str
    operands: str
    types: str
    line: str = ""
    arguments: str = ""
    inner: list[Row] = field(default_factory=list)
    returned: str = ""


@dataclass(frozen=True)
class Leaves:
    """The leaves of one kind."""

    kind: str
    rows: tuple[Row, ...]

    @property
    def folded(self) -> bool:
        return len(self.rows) > FOLDED


@dataclass(frozen=True)
class StageView:
    """What the template shows of a stage. One that changed nothing has a name and `same`, the
    number of the stage whose graph it still is."""

    name: str
    same: int
    leaves: tuple[Leaves, ...] = ()
    rows: tuple[Row, ...] = ()
    returned: str = ""
    drawing: str = ""
    fired: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()


def page(title: str, note: str, stages: Sequence[Stage], lowered: Lowered,
         code: Mapping[Place, Sequence[str]], code_note: str) -> str:
    """The page. `lowered` is what the passes made and report; `code` is what was generated for the
    places of the last stage, and `code_note` says why there is none. Equal arguments give equal
    bytes."""
    reporter = Reporter(lowered.recipes)
    reports = {report.name: report for report in lowered.report}
    views: list[StageView] = []
    for i, stage in enumerate(stages):
        same = i if stage.changed else views[-1].same
        views.append(_view(stage, same, reports.get(stage.name)))
    data = {
        "stages": [{"name": s.name, "same": v.same,
                    "rows": reporter.facts(s, code) if s.changed else []}
                   for s, v in zip(stages, views, strict=True)],
        "bytes": reporter.bytes, "texts": reporter.texts.all, "codeNote": code_note}
    return templates().get_template("page.html.j2").render(
        title=title, note=note, views=views, data=data, style=_file("page.css"),
        scripts=[_file(name) for name in SCRIPTS])


def _file(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text())


def _view(stage: Stage, same: int, report: PassReport | None) -> StageView:
    fired = _counted(report.fired if report else ())
    missed = _counted(report.missed if report else ())
    if not stage.changed:
        return StageView(stage.name, same, fired=fired, missed=missed)
    leaves = [(v.kind or "input", Row(i, stage.names(v), "", "", str(v.type)))
              for i, v in enumerate(stage.graph.leaves)]
    kinds = tuple(Leaves(kind, tuple(row for k, row in leaves if k == kind)) for kind in LEAVES)
    returned = ", ".join(map(stage.names, stage.graph.outputs))
    return StageView(stage.name, same, tuple(k for k in kinds if k.rows), _rows(stage), returned,
                     _drawing(stage, same), fired, missed)


def _counted(entries: Sequence[Entry]) -> tuple[str, ...]:
    lines = [entry_text(entry) for entry in entries if not is_distant(entry)]
    return tuple(line if lines.count(line) == 1 else f"{line}, {lines.count(line)} times"
                 for line in dict.fromkeys(lines))


def _rows(stage: Stage) -> tuple[Row, ...]:
    names = stage.names
    made: dict[Place, Row] = {}
    outer: list[Row] = []
    for place, number in row_numbers(stage).items():
        node = place.node
        row = Row(number, outputs_text(node, names), node.name, operands_text(node, names),
                  types_text(node), str(node.loc or ""))
        if place.is_open and node.body is not None:
            row.arguments = ", ".join(map(names, node.body.leaves))
            row.returned = ", ".join(map(names, node.body.outputs))
        (made[place.parent].inner if place.parent else outer).append(row)
        made[place] = row
    return tuple(outer)


def _drawing(stage: Stage, number: int) -> Markup:
    numbers: dict[tuple[tuple[Node, ...], Value | Node], int] = {
        (_path(place), place.node): row for place, row in row_numbers(stage).items()}
    numbers |= {((), leaf): i for i, leaf in enumerate(stage.graph.leaves)}

    def row(box: Box) -> int | None:
        return numbers.get((box.path, box.value)) if box.value is not None else None

    return Markup(svg(stage.graph, stage.names, row, f"arrow{number}"))


def _path(place: Place) -> tuple[Node, ...]:
    return (*_path(place.parent), place.parent.node) if place.parent else ()
