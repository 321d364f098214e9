"""Graphs as text (the golden format) and as Graphviz dot."""

from __future__ import annotations

from collections.abc import Iterator

from graphdsl.ir import Graph, Node, Value

SHOWN_BODIES = ("loop", "matmul_epilogue", "matmul_prologue", "attention_epilogue", "repeat")
"""Bodies that are part of a node's meaning; an Operation's body is documented by its name."""


class Names:
    """%x for a named value, %0 for the others, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.count = 0

    def __call__(self, value: Value) -> str:
        if value not in self.names:
            name = value.name if value.name and value.name not in self.taken else ""
            if not name:
                name = str(self.count)
                self.count += 1
            self.taken.add(name)
            self.names[value] = f"%{name}"
        return self.names[value]


def text(graph: Graph, *, locations: bool = True) -> str:
    """One line a node: `%2 = add(%0, %1) : f32[batch, 8]  # layer.py:12 attn <- Rule`."""
    names = Names()
    leaves = [f"  {kind or 'input'} {names(v)} : {v.type}"
              for kind, values in (("input", graph.inputs), ("state", graph.state),
                                   ("param", graph.params)) for v in values]
    body = list(_lines(graph, names, "  ", locations))
    returned = ", ".join(map(names, graph.outputs))
    return "\n".join([f"graph {graph.name}:", *leaves, *body, f"  return {returned}"])


def _lines(graph: Graph, names: Names, indent: str, locations: bool) -> Iterator[str]:
    for node in graph.nodes:
        yield indent + node_text(node, names, locations)
        if node.body and node.name in SHOWN_BODIES:
            inner = ", ".join(map(names, node.body.leaves))
            yield f"{indent}  ({inner}):"
            yield from _lines(node.body, names, indent + "    ", locations)
            yield f"{indent}    return {', '.join(map(names, node.body.outputs))}"


def node_text(node: Node, names: Names | None = None, locations: bool = True) -> str:
    """The line of one node."""
    names = names or Names()
    operands = operands_text(node, names)
    line = f"{outputs_text(node, names)} = {node.name}({operands}) : {types_text(node)}"
    if locations:
        line += f"  # {note_text(node)}"
    return line


def operands_text(node: Node, names: Names) -> str:
    """What a node reads, and its attributes."""
    return ", ".join([*_shortened([names(v) for v in node.inputs], 8),
                      *(f"{k}={attribute_text(v)}" for k, v in node.attrs)])


def outputs_text(node: Node, names: Names) -> str:
    """The names of what a node makes."""
    return ", ".join(_shortened([names(v) for v in node.outputs], 4))


def types_text(node: Node) -> str:
    """The types of what a node makes."""
    return ", ".join(_shortened([str(t) for t in node.out_types], 4))


def note_text(node: Node) -> str:
    """`layer.py:12 attn <- Rule`: the user's line, the scope and the rules that made the node."""
    origin = f" <- {'+'.join(node.origin)}" if node.origin else ""
    scope = f" {node.scope}" if node.scope else ""
    return f"{node.loc}{scope}{origin}"


def attribute_text(value: object) -> str:
    """An attribute as text: sizes by their name, also inside of tuples."""
    if not isinstance(value, tuple):
        return str(value)
    return f"({', '.join(map(attribute_text, value))}{',' if len(value) == 1 else ''})"


def _shortened(items: list[str], most: int) -> list[str]:
    return items if len(items) <= most else [*items[:most], f"... {len(items) - most} more"]


def dot(graph: Graph) -> str:
    """The graph for Graphviz: leaves as ovals, nodes as boxes with their type and line."""
    names: dict[Value, str] = {}
    lines = [f'digraph "{graph.name}" {{', "  node [shape=box, fontname=monospace];"]
    for i, leaf in enumerate(v for v in graph.leaves if v in graph.users):
        names[leaf] = f"leaf{i}"
        lines.append(f'  leaf{i} [shape=oval, label="{leaf.name}\\n{leaf.type}"];')
    for i, node in enumerate(graph.nodes):
        types = "\\n".join(str(t) for t in node.out_types[:4])
        lines.append(f'  n{i} [label="{node.name}\\n{types}\\n{node.loc}"];')
        names |= dict.fromkeys(node.outputs, f"n{i}")
        lines += [f"  {names[v]} -> n{i};" for v in node.inputs]
    for i, value in enumerate(graph.outputs):
        lines.append(f'  out{i} [shape=oval, label="output {i}"];')
        lines.append(f"  {names[value]} -> out{i};")
    return "\n".join([*lines, "}"])
