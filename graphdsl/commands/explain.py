"""graphdsl explain: which rules fired, which nearly did, and why not."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence

from graphdsl.backend import find_backend
from graphdsl.commands.session import Session, say
from graphdsl.errors import GraphError
from graphdsl.passes.catalogue import FUSIONS, groups
from graphdsl.passes.memory import ordered
from graphdsl.passes.pipeline import PassReport, run_pipeline
from graphdsl.placement import report as memory_report
from graphdsl.plan import make_plan
from graphdsl.seeing.facts import Lines
from graphdsl.seeing.sites import counts, distant, records, site_lines, sites, times


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints every line of the user's with the rules that fired or nearly did there."""
    source = session.source(args)
    backend = find_backend(args.backend)
    target = backend.target
    lowered = run_pipeline(source.graph, target, dict(args.passes))
    rules = {rule.name for rule in (*FUSIONS, *groups(target))}
    for report in lowered.report:
        rules |= {f.rule for f in report.fired} | {m.rule for m in report.missed}
    if args.rule and args.rule not in rules:
        raise GraphError(f"no rule {args.rule}", hint=f"rules: {', '.join(sorted(rules))}")
    if args.format == "json":
        say(json.dumps(records(lowered.report, Lines(), args.rule or ""), indent=1))
        return 0
    summary = _print_sites(lowered.report, args.rule or "")
    if not args.rule:
        plan = make_plan(lowered.graph, lowered.recipes, backend, ordered)
        say(f"workspace: {memory_report(plan, backend.size)}")
    say(summary)
    return 0


def _print_sites(reports: Sequence[PassReport], rule: str) -> str:
    """Prints every line of the user's with what happened there; returns how often that was."""
    found, lines = sites(reports, rule), Lines()
    for site in found:
        for line in site_lines(site, lines):
            say(line)
    fired, missed = counts(found)
    others = distant(reports)
    if others and not rule:
        say(f"not listed: where one op of a pattern was all that was found ({_listed(others)}); "
            "--rule NAME lists them")
    return f"{f'{rule} ' if rule else ''}fired {times(fired)}, nearly {times(missed)}"


def _listed(rules: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(rules.items()))
