"""What the passes did at every line of the user's, and what they nearly did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from graphdsl.errors import Loc
from graphdsl.passes.base import Fired, Missed
from graphdsl.passes.pipeline import PassReport
from graphdsl.seeing.facts import Lines

Entry = Fired | Missed


@dataclass(frozen=True)
class Site:
    """A line of the user's, and what happened there: each entry with its pass, and how often."""

    loc: Loc | None
    entries: tuple[tuple[str, Entry, int], ...]


def is_distant(entry: Entry) -> bool:
    """Whether one node alone brought up a rule that did not fire: the reader hears of it only who
    asks for that rule."""
    return isinstance(entry, Missed) and entry.matched < 2


def sites(reports: Sequence[PassReport], rule: str = "") -> list[Site]:
    """All lines where something happened, in the order of the files; what has no line comes last.
    Of one `rule` everything is told, of all rules what is not distant."""
    found: dict[Loc | None, Counter[tuple[str, Entry]]] = {}
    files: dict[str, int] = {}
    for report in reports:
        entries: tuple[Entry, ...] = (*report.fired, *report.missed)
        for entry in entries:
            if (entry.rule == rule) if rule else not is_distant(entry):
                told = (report.name, replace(entry, scope=_layers_as_one(entry.scope)))
                found.setdefault(entry.loc, Counter())[told] += 1
                if entry.loc:
                    files.setdefault(entry.loc.file, len(files))

    def order(loc: Loc | None) -> tuple[int, int]:
        return (files[loc.file], loc.line) if loc else (len(files), 0)

    return [Site(loc, tuple(_fired_first(found[loc]))) for loc in sorted(found, key=order)]


def distant(reports: Sequence[PassReport]) -> Counter[str]:
    """How many distant misses every rule has."""
    return Counter(m.rule for report in reports for m in report.missed if is_distant(m))


def _layers_as_one(scope: str) -> str:
    """`layers.3.kv.k` as `layers.*.kv.k`: what happens in every layer is told once."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", scope)


def _fired_first(entries: Counter[tuple[str, Entry]]) -> Iterator[tuple[str, Entry, int]]:
    for wanted in (Fired, Missed):
        for (name, entry), count in entries.items():
            if isinstance(entry, wanted):
                yield name, entry, count


def site_lines(site: Site, lines: Lines) -> Iterable[str]:
    """A heading with the user's line, then a line an entry."""
    source = lines.text(site.loc)
    yield f"{site.loc}  {source}".rstrip() if site.loc else "at no line"
    for name, entry, count in site.entries:
        kind = "fired " if isinstance(entry, Fired) else "missed"
        often = f", {times(count)}" if count > 1 else ""
        yield f"  {kind}  {entry_text(entry)} [{name}]{often}"
        if isinstance(entry, Missed) and entry.at and entry.at != entry.loc:
            yield f"          {entry.at}  {lines.text(entry.at)}".rstrip()


def entry_text(entry: Entry) -> str:
    """An entry, with the other lines of what a rule took: those of the same file by number."""
    if isinstance(entry, Missed) or entry.loc is None:
        return str(entry)
    others = {loc for loc in entry.lines if loc and loc != entry.loc}
    near = sorted(loc.line for loc in others if loc.file == entry.loc.file)
    far = sorted(str(loc) for loc in others if loc.file != entry.loc.file)
    if near:
        far.insert(0, f"line{'s' * (len(near) > 1)} {', '.join(map(str, near))}")
    return f"{entry}, with {', '.join(far)}" if far else str(entry)


def records(reports: Sequence[PassReport], lines: Lines, rule: str = "") -> list[dict[str, object]]:
    """Everything that fired or nearly did, distant misses too, as plain data in the order of the
    passes. `matched` is how many nodes of its pattern a miss found."""
    found: list[dict[str, object]] = []
    for report in reports:
        entries: tuple[Entry, ...] = (*report.fired, *report.missed)
        for entry in (e for e in entries if not rule or e.rule == rule):
            told: dict[str, object] = {
                "pass": report.name, "rule": entry.rule, "fired": isinstance(entry, Fired),
                "line": str(entry.loc or ""), "source": lines.text(entry.loc),
                "scope": entry.scope}
            if isinstance(entry, Missed):
                told |= {"reason": entry.reason, "blame": str(entry.at or ""),
                         "matched": entry.matched}
            else:
                told["lines"] = [str(loc) for loc in dict.fromkeys(entry.lines) if loc]
            found.append(told)
    return found


def counts(found: Sequence[Site]) -> tuple[int, int]:
    """How often something fired, and how often it nearly did."""
    fired = missed = 0
    for _, entry, count in (each for site in found for each in site.entries):
        fired += count * isinstance(entry, Fired)
        missed += count * isinstance(entry, Missed)
    return fired, missed


def times(count: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
