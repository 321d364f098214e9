"""A graph as boxes and lines, the bodies of fused nodes drawn inside of them, and as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import constant
from graphdsl.printer import SHOWN_BODIES, Names, attribute_text, node_text
from graphdsl.seeing.layers import Point, place
from graphdsl.seeing.stages import bound, names_of

TEMPLATES = Path(__file__).parent / "templates"

CHARACTER, LINE, PADDING, HEADER = 7.3, 16.0, 9.0, 24.0
"""Pixels: a character's width, a line's height, the space in a box, the name above a body."""
NAMED, LONGEST, READERS = 3, 44, 6
"""Folded operands that a box names, the characters of one line in it, and the most readers of a
value to whom lines are drawn."""
MARK = 14.0
"""Pixels kept for the mark of a change."""


@dataclass(frozen=True)
class Box:
    """One rectangle. `kind` is node, body (of a fused node), leaf or output; `node` is what it
    stands for, `path` the fused nodes around it."""

    kind: str
    lines: tuple[str, ...]
    title: str
    width: float
    height: float
    value: Value | Node | None = None
    path: tuple[Node, ...] = ()
    x: float = 0.0
    y: float = 0.0

    def moved(self, x: float, y: float) -> Box:
        return replace(self, x=self.x + x, y=self.y + y)


@dataclass(frozen=True)
class Drawing:
    """Boxes, outer ones first, and lines as SVG paths."""

    boxes: tuple[Box, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float

    @property
    def paths(self) -> list[str]:
        """Lines that leave and enter boxes upright."""
        return [_path(route) for route in self.routes]


def draw(graph: Graph, names: Names) -> Drawing:
    """The graph from top to bottom. Params, state, constants and what many nodes read are named in
    the boxes that read them: their lines would hide the others."""
    return _Drawer(graph, names, {}, ()).drawing()


@dataclass
class _Drawer:
    """Draws one graph. `folded` are the values that are named and not drawn; `path` leads to the
    body that is drawn."""

    graph: Graph
    names: Names
    folded: dict[Value, str]
    path: tuple[Node, ...]
    parts: list[tuple[Box, Drawing | None]] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    made_by: dict[Value, int] = field(default_factory=dict)

    def drawing(self) -> Drawing:
        if not self.path:
            self.folded |= {v: v.name for v in (*self.graph.state, *self.graph.params)}
        for value, users in self.graph.users.items():
            if len(users) > READERS:
                self.folded.setdefault(value, value.name or self.names(value))
        for leaf in self.graph.leaves:
            if leaf not in self.folded and leaf in self.graph.users:
                name = leaf.name or self.names(leaf)
                self._add(self._box("leaf", (name, str(leaf.type)), leaf))
                self.made_by[leaf] = len(self.parts) - 1
        for node in self.graph.nodes:
            self._node(node)
        shown = self.graph.results if not self.path else ()
        for i, value in enumerate(shown):
            if value.node is not None or value in self.made_by:
                box = self._box("output", (f"result {i}", str(value.type)), None)
                self._add(box, (value,))
        return _placed(self.parts, self.edges)

    def _node(self, node: Node) -> None:
        if node.op is constant:
            self.folded[node.outputs[0]] = attribute_text(node.attr["value"])
            return
        if node.name in SHOWN_BODIES and node.body is not None:
            inner = self._body(node, node.body)
            box = self._box("body", (_label(node, self.folded),), node)
            box = replace(box, width=max(box.width, inner.width + 2 * PADDING),
                          height=inner.height + HEADER + PADDING)
            self._add(box, node.inputs, inner)
        else:
            lines = (_label(node, self.folded), _type_and_line(node))
            self._add(self._box("node", lines, node), node.inputs)
        drawn = [v for v in node.outputs if v not in self.folded]
        self.made_by.update(dict.fromkeys(drawn, len(self.parts) - 1))

    def _body(self, node: Node, body: Graph) -> Drawing:
        outside = [self.folded.get(v, "") for v in node.inputs]
        names = zip(body.leaves, bound(node, outside), strict=True)
        folded = {leaf: leaf.name or name for leaf, name in names if name}
        return _Drawer(body, self.names, folded, (*self.path, node)).drawing()

    def _box(self, kind: str, lines: Sequence[str], value: Value | Node | None) -> Box:
        cut = tuple(map(_cut, lines))
        title = node_text(value, self.names) if isinstance(value, Node) else " : ".join(lines)
        return Box(kind, cut, title, max(map(len, cut)) * CHARACTER + 2 * PADDING + MARK,
                   len(cut) * LINE + PADDING, value, self.path)

    def _add(self, box: Box, reads: Sequence[Value] = (), inner: Drawing | None = None) -> None:
        self.parts.append((box, inner))
        sources = dict.fromkeys(self.made_by[v] for v in reads if v in self.made_by)
        self.edges += [(source, len(self.parts) - 1) for source in sources]


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _label(node: Node, folded: dict[Value, str]) -> str:
    """The op, the folded values that it reads, and those that it makes."""
    if node.name == "repeat":
        return f"repeat, {node.attr['turns']} turns"
    names = list(dict.fromkeys(folded[v] for v in node.inputs if v in folded))
    made = [folded[v] for v in node.outputs if v in folded]
    more = f" +{len(names) - NAMED}" if len(names) > NAMED else ""
    label = f"{node.name} {', '.join(names[:NAMED])}{more}".rstrip()
    return f"{label} → {', '.join(made)}" if made else label


def _type_and_line(node: Node) -> str:
    place = f" :{node.loc.line}" if node.loc else ""
    return f"{node.out_types[0]}{place}"


def _placed(parts: Sequence[tuple[Box, Drawing | None]], edges: Sequence[tuple[int, int]],
            ) -> Drawing:
    found = place([(box.width, box.height) for box, _ in parts], edges)
    boxes: list[Box] = []
    routes = list(found.routes)
    for (box, inner), (middle, top) in zip(parts, found.tops, strict=True):
        left = middle - box.width / 2
        boxes.append(box.moved(left, top))
        if inner is not None:
            x, y = left + (box.width - inner.width) / 2, top + HEADER
            boxes += [each.moved(x, y) for each in inner.boxes]
            routes += [tuple((a + x, b + y) for a, b in route) for route in inner.routes]
    return Drawing(tuple(boxes), tuple(routes), found.width, found.height)


def _path(route: Sequence[Point]) -> str:
    (x, y), *rest = route
    parts = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in rest:
        if (to_x, to_y) == (x, y):
            continue
        half = (y + to_y) / 2
        straight = abs(to_x - x) < 0.1
        parts.append(f"V{to_y:.1f}" if straight else
                     f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    return "".join(parts)


def templates() -> jinja2.Environment:
    """The templates of this package; whatever they are given is escaped."""
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True,
                              undefined=jinja2.StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)


def svg(graph: Graph, names: Names | None = None,
        row: Callable[[Box], int | None] = lambda box: None, arrow: str = "arrow") -> str:
    """The drawing as SVG. On a page, `row` gives the row that a box stands for, and `arrow` is a
    name that no other drawing has; alone, the picture has its own style."""
    drawing = draw(graph, names or names_of(graph))
    boxes = [(box, row(box)) for box in drawing.boxes]
    return templates().get_template("drawing.svg.j2").render(
        drawing=drawing, boxes=boxes, line=LINE, padding=PADDING, name=graph.name, arrow=arrow,
        alone=all(number is None for _, number in boxes))
