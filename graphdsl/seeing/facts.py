"""What the page says of every node and leaf: plain data, ready to be written as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphdsl.errors import Loc
from graphdsl.expr import Poly, product
from graphdsl.ir import DTYPES, Graph, TensorType, Value, size_value
from graphdsl.printer import attribute_text, text
from graphdsl.seeing.stages import Place, Stage, bound, hidden_body, value_names

Facts = dict[str, Any]

LISTED = 24
"""Operands of one node that are listed: a repeat may have hundreds."""


def byte_text(kind: TensorType) -> str:
    """The bytes of a tensor: `16384*batch*tokens`, or `67108864 (64 MiB)`."""
    total = product(kind.shape) * DTYPES[kind.dtype]
    if kind.quant:
        n, k = (size_value(size, {}) for size in kind.shape)
        total = Poly.of(kind.quant.bytes(n, k))
    if total.number is None:
        return _poly_text(total)
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if total.number >= size:
            return f"{total.number} ({total.number / size:.4g} {unit})"
    return str(total.number)


def _poly_text(poly: Poly) -> str:
    return " + ".join("*".join([*([str(k)] if k != 1 or not names else []), *names])
                      for names, k in reversed(poly.items))


@dataclass
class Lines:
    """The text of the user's lines, each file read once."""

    files: dict[str, list[str]] = field(default_factory=dict)

    def text(self, loc: Loc | None) -> str:
        """The line, without its indentation; empty where the file is not there."""
        if loc is None:
            return ""
        if loc.file not in self.files:
            path = Path(loc.file)
            # Not splitlines(): Python counts lines by newlines alone.
            self.files[loc.file] = (path.read_text(errors="replace").split("\n")
                                    if path.is_file() else [])
        lines = self.files[loc.file]
        return lines[loc.line - 1].strip() if 0 < loc.line <= len(lines) else ""


@dataclass
class Texts:
    """Long texts, each kept once: thirty equal layers have one body between them."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, long: str) -> int:
        """The place of a text in `all`."""
        return self.numbers.setdefault(long, len(self.numbers))

    @property
    def all(self) -> list[str]:
        return list(self.numbers)


@dataclass
class Reporter:
    """Makes the facts of all stages of one page; what they share is kept here. `recipes` say how
    params that the passes have added are made."""

    recipes: Mapping[str, Graph] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)
    texts: Texts = field(default_factory=Texts)
    bytes: dict[str, str] = field(default_factory=dict)
    """The bytes of every type, by its text."""

    def facts(self, stage: Stage, code: Mapping[Place, Sequence[str]]) -> list[Facts]:
        """One entry a row: the leaves of the graph, then its places. What is empty is left out."""
        reads, homes = value_names(stage), _homes(stage)
        rows = row_numbers(stage)
        found = [self._leaf(stage, leaf) for leaf in stage.graph.leaves]
        for place in stage.places:
            node, parent = place.node, place.parent
            fact: Facts = {
                "number": stage.numbers[place], "op": node.name, "key": _digest(reads[place]),
                "reads": [[*self._value(stage, v), homes[parent, v]]
                          for v in node.inputs[:LISTED]],
                "more": max(0, len(node.inputs) - LISTED),
                "makes": [self._value(stage, v) for v in node.outputs[:LISTED]],
                "attrs": [[k, attribute_text(v)] for k, v in node.attrs],
                "line": str(node.loc or ""), "source": self.lines.text(node.loc),
                "scope": node.scope, "origin": list(node.origin),
                "inside": [rows[parent], stage.numbers[parent]] if parent else [],
                "body": [self.texts.number(hidden_body(node))] if hidden_body(node) else [],
                "code": [self.texts.number(t) for t in code.get(place, ())]}
            found.append({k: v for k, v in fact.items() if v or k == "number"})
        return found

    def _leaf(self, stage: Stage, leaf: Value) -> Facts:
        kind = leaf.kind or "input"
        fact: Facts = {"number": f"{kind} {leaf.name}", "op": kind, "leaf": True,
                       "makes": [self._value(stage, leaf)]}
        if leaf.is_param and leaf.name in self.recipes:
            fact["body"] = [self.texts.number(text(self.recipes[leaf.name]))]
        return fact

    def _value(self, stage: Stage, value: Value) -> list[Any]:
        kind = str(value.type)
        if kind not in self.bytes:
            self.bytes[kind] = byte_text(value.type)
        return [stage.names(value), kind]


def row_numbers(stage: Stage) -> dict[Place, int]:
    """The row of every place: they come after the leaves."""
    return {place: i for i, place in enumerate(stage.places, start=len(stage.graph.leaves))}


def _homes(stage: Stage) -> dict[tuple[Place | None, Value], int]:
    """The row that makes a value, as seen from inside a place. What the leaf of a body stands for
    is made outside."""
    leaves = stage.graph.leaves
    home: dict[tuple[Place | None, Value], int] = {(None, v): i for i, v in enumerate(leaves)}
    for place, row in row_numbers(stage).items():
        home.update(((place.parent, v), row) for v in place.node.outputs)
        if place.is_open and place.node.body is not None:
            outside = [home[place.parent, v] for v in place.node.inputs]
            home.update(((place, leaf), at) for leaf, at in
                        zip(place.node.body.leaves, bound(place.node, outside), strict=True))
    return home


def _digest(names: Sequence[str]) -> str:
    whole = ", ".join(names)
    return whole if len(whole) < 80 else hashlib.sha256(whole.encode()).hexdigest()[:16]
