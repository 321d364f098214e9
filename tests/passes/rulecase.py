"""What the tests of the rule families share: a target that takes every Operation, what comes out of
the pipeline for it, the golden text of a rule, and the single near miss of one."""

from __future__ import annotations

import random
from typing import Any

from passcase import Example, attribute_choices, before_of, drawn_types, names

from graphdsl import ops
from graphdsl.ir import Graph
from graphdsl.passes.base import Missed, Target
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text

EVERY = Target("every", takes=frozenset(ops.__all__), fuses_loops=False,
               dtypes=frozenset({"f32", "bf16", "f16"}))


def made(graph: Graph) -> list[str]:
    """The ops that are left for a target that takes every Operation; the numbers are compared."""
    found = names(run_pipeline(graph, EVERY, verify=True).graph)
    return [name for name in found if name != "constant"]


def golden_text(rule: Example) -> str:
    """The smallest graph on which a rule fires, before and after."""
    graph = before_of(rule, drawn_types(rule.shapes, random.Random(0)),
                      next(attribute_choices(rule)))
    after, fired, _ = apply_rules(graph, [rule])
    told = " ".join((type(rule).__doc__ or "").split())
    return "\n\n".join([f"{rule.name}: {told}", text(graph, locations=False),
                        f"fired: {', '.join(f.rule for f in fired)}",
                        text(after, locations=False)])


def only_miss(graph: Graph, *rules: Any) -> Missed:
    """The single near miss of rules that do not fire."""
    _, fired, missed = apply_rules(graph, rules)
    assert not fired
    assert len(missed) == 1
    return missed[0]
