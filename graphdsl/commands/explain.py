"""graphdsl explain: which rules fired, which nearly did, and why not."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from graphdsl.backend import backend_names, find_backend
from graphdsl.commands.session import Session, say
from graphdsl.errors import GraphError
from graphdsl.passes.base import Target
from graphdsl.passes.catalogue import FUSIONS, PASS_RULES, groups
from graphdsl.passes.pipeline import PassReport, run_pipeline
from graphdsl.seeing.facts import Lines
from graphdsl.seeing.sites import counts, distant, records, site_lines, sites, times


def run(args: argparse.Namespace, session: Session) -> int:
    """Prints every line of the user's with the rules that fired or nearly did there."""
    source = session.source(args)
    backend = find_backend(args.backend, args.soc)
    target = backend.target
    if args.rule:
        _check_rule(args.rule, target)
    lowered = run_pipeline(source.graph, target, dict(args.passes))
    if args.format == "json":
        say(json.dumps(records(lowered.report, Lines(), args.rule or ""), indent=1))
        return 0
    summary = _print_sites(lowered.report, args.rule or "")
    if not args.rule:
        for stage, text in backend.summary(backend.plan(lowered)):
            say(f"{stage}: {text}")
    say(summary)
    return 0


def _check_rule(name: str, target: Target) -> None:
    """Raises GraphError for a rule that is not there, with the backends that have it, or with the
    rules of a similar name."""
    rules = _rules(target)
    if name in rules:
        return
    others = [other for other in backend_names() if name in _rules(find_backend(other).target)]
    if others:
        raise GraphError(f"no rule {name} for the {target.name} backend",
                         hint=f"rule of {', '.join(others)}: --backend {others[0]}")
    lower = {rule.lower(): rule for rule in rules}
    close = [lower[near] for near in get_close_matches(name.lower(), lower)]
    raise GraphError(f"no rule {name}", hint=f"rules: {', '.join(close or sorted(rules))}")


def _rules(target: Target) -> set[str]:
    """The names of all rules of a backend's passes."""
    own = (name for each in target.passes for name in each.rules)
    return {*PASS_RULES, *own, *(rule.name for rule in (*FUSIONS, *groups(target)))}


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
