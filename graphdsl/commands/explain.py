"""graphdsl explain: which rules fired, which nearly did, and why not."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from graphdsl.backend import find_backend
from graphdsl.commands.session import Session, say
from graphdsl.errors import GraphError
from graphdsl.passes.base import Fired, Missed
from graphdsl.passes.catalogue import FUSIONS, groups
from graphdsl.passes.pipeline import PassReport, run_pipeline


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints a line a place, with the user's file and line, pass by pass."""
    source = session.source(args)
    target = find_backend(args.backend).target
    lowered = run_pipeline(source.graph, target, dict(args.passes))
    rules = {rule.name for rule in (*FUSIONS, *groups(target))}
    for report in lowered.report:
        rules |= {f.rule for f in report.fired} | {m.rule for m in report.missed}
    if args.rule and args.rule not in rules:
        raise GraphError(f"no rule {args.rule}", hint=f"rules: {', '.join(sorted(rules))}")
    fired = missed = 0
    for report in lowered.report:
        lines = list(_lines(report, args.rule))
        fired += sum(line.startswith("fired") for line in lines)
        missed += sum(line.startswith("missed") for line in lines)
        if lines:
            say(f"{report.name}: {report.nodes_before} nodes -> {report.nodes_after}")
            for line in lines:
                say(f"  {line}")
    what = f"{args.rule} " if args.rule else ""
    say(f"{what}fired {_times(fired)}, nearly {_times(missed)}")
    return 0


def _lines(report: PassReport, rule: str | None) -> Iterable[str]:
    """Equal lines once, in the order of their places."""
    def wanted(each: Fired | Missed) -> bool:
        return not rule or each.rule == rule

    fired = [f"fired   {each}" for each in report.fired if wanted(each)]
    missed = [f"missed  {each}" for each in report.missed if wanted(each)]
    return dict.fromkeys([*fired, *missed])


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
