"""Broken twins: rules that find what a rule finds and make something else of it.

Every rule has some without anything being written for it: one of its results is bent, one of its
attributes is ignored, or one of its operands stands in for another.
"""

from __future__ import annotations

import copy
import dis
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from graphdsl.ir import FLOATS, Node, Value
from graphdsl.ops.math import logical_not
from graphdsl.passes import expand
from graphdsl.passes.base import Target
from graphdsl.passes.overlay import Overlay
from graphdsl.passes.rules import Candidate, FusionRule, Rule
from graphdsl.signature import parse_terms


def bent(value: Value) -> Value:
    """Something else of the same type, which no norm or softmax makes the same again."""
    if value.dtype == "bool":
        made: Value = logical_not(value)
        return made
    return value + value * value * 0.25 if value.dtype in FLOATS else value - 1


@dataclass(frozen=True)
class Bent:
    """A rule of which one result is bent; everything else is that of the rule."""

    rule: Rule
    index: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    @property
    def what(self) -> str:
        return f"bends result {self.index}"

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        found = self.rule.find(overlay, node)

        def make() -> Sequence[Value]:
            made = found.make()
            values = list(made) if isinstance(made, tuple | list) else [made]
            values[self.index] = bent(values[self.index])
            return values

        return replace(found, make=make)


def _with_after(rule: FusionRule, what: str, after: Callable[..., Any]) -> Any:
    """The rule with another `after`."""
    twin: Any = copy.copy(rule)
    object.__setattr__(twin, "after", after)
    object.__setattr__(twin, "what", what)
    return twin


def _ignoring(rule: FusionRule, name: str) -> Any:
    """The rule with one value for an attribute, whatever was matched."""
    fixed = rule.attributes[name][0]
    return _with_after(rule, f"ignores {name}", lambda *operands, **attrs: rule.after(
        *operands, **{**attrs, name: fixed}))


def _reads(function: Callable[..., Any], name: str) -> bool:
    """Whether `after` makes anything of an attribute: some only say where a rule fires."""
    parameters = inspect.signature(function).parameters
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), "")
    wanted = name if name in parameters else rest
    return any(i.opname.startswith("LOAD") and i.argval == wanted
               for i in dis.get_instructions(function))


def _confusing(rule: FusionRule, names: Sequence[str], taken: int, missed: int) -> Any:
    """The rule with one operand in the place of another."""
    def after(*operands: Value, **attrs: Any) -> Any:
        given = list(operands)
        given[missed] = given[taken]
        return rule.after(*given, **attrs)

    return _with_after(rule, f"takes {names[taken]} for {names[missed]}", after)


def twins(rule: Any) -> Iterator[Any]:
    """The broken twins of a rule, the plainest first."""
    yield Bent(rule)
    if not isinstance(rule, FusionRule):
        return
    yield from (Bent(rule, i) for i in range(1, len(rule.patterns.outputs)))
    yield from (_ignoring(rule, name) for name, values in rule.attributes.items()
                if len(values) > 1 and _reads(rule.after, name))
    terms = parse_terms(rule.shapes)
    for (i, a), (j, b) in itertools.permutations(enumerate(terms), 2):
        if (a.dims, a.dtype) == (b.dims, b.dtype):
            yield _confusing(rule, [t.name for t in terms], i, j)


def bend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the rules of this name in the pipeline are broken."""
    def bent_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
        return tuple(Bent(rule) if rule.name == name else rule for rule in rules)

    made = {group: getattr(expand, group) for group in ("splits", "groups")}

    def of(group: str) -> Callable[[Target], tuple[Rule, ...]]:
        return lambda target: bent_rules(made[group](target))

    monkeypatch.setattr(expand, "FUSIONS", bent_rules(expand.FUSIONS))
    for group in made:
        monkeypatch.setattr(expand, group, of(group))
