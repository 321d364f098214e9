"""What the random graphs of a run have shown: counts, and how often every rule fired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SAMPLE = 2
"""--seeds of a run that takes the fixed samples alone; nothing is told of them."""
FULL = 5000
LEAST = 50
"""In a full run every rule has to fire in so many graphs."""

Stats = Mapping[str, Sequence[Any]]


def _recorded(stats: Stats) -> Iterator[tuple[str, Any]]:
    """What tests have recorded, those that failed too."""
    reports = (r for outcome in ("passed", "failed") for r in stats.get(outcome, ()))
    return (item for r in reports if getattr(r, "when", "") == "call" for item in r.user_properties)


def fired(stats: Stats) -> Counter[str]:
    """In how many graphs every rule fired; 0 for one that the catalogue has and none fired."""
    total: Counter[str] = Counter()
    for name, value in _recorded(stats):
        if name == "fired":
            total.update(value)
        if name == "rules":
            total.update(dict.fromkeys(value, 0))
    return total


def failed_counts(stats: Stats, seeds: int) -> list[str]:
    """The rules that fire too rarely, in a run of all graphs."""
    return sorted(n for n, count in fired(stats).items() if count < LEAST) if seeds >= FULL else []


def summary(stats: Stats, seeds: int) -> Iterator[str]:
    """The counts of all kinds of random graphs, and a table of the rules."""
    counts: Counter[str] = Counter()
    for name, value in _recorded(stats):
        if name not in ("fired", "rules") and isinstance(value, int):
            counts[name] += value
    if not counts or seeds <= SAMPLE:
        return
    table = fired(stats)
    yield ""
    yield "random graphs: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    yield f"failures: {len(stats.get('failed', ())) + len(stats.get('error', ()))}"
    width = max(map(len, table), default=0)
    cells = [f"{name:{width}} {count:5}" for name, count in sorted(table.items())]
    if cells:
        yield "graphs in which a rule fired:"
    for start in range(0, len(cells), 3):
        yield "  " + "   ".join(cells[start:start + 3])
    for name in failed_counts(stats, seeds):
        yield f"FAILED {name} fires in {table[name]} graphs, wanted {LEAST}"
