"""Equal calls share their generated code: layers that are unrolled, or of one kind within a turn.

Two calls are equal if their text is, but for which pointers it names. The text then becomes a
function of those pointers, so that a deep model compiles as fast as one layer. A repeat is like no
other call: it names its body's whole table of pointers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

BASE = re.compile(r"\b[pb]\d+\b")
"""What generated code calls the pointers of a body."""


@dataclass(frozen=True)
class Site:
    """One call in a body: its comment, its generated text, and the C type that every pointer of
    the body has."""

    note: str
    barrier: bool
    op: str
    text: str
    ctypes: dict[str, str]
    callee: SharedCode | None = None
    """The function that the text calls, where equal calls share one."""

    @property
    def bases(self) -> tuple[str, ...]:
        """The pointers that the text names, in order of their first appearance."""
        found = dict.fromkeys(BASE.findall(self.text))
        return tuple(name for name in found if name in self.ctypes)

    @property
    def function(self) -> tuple[tuple[str, ...], str]:
        """The parameters and the text of a function that does what this call does."""
        renamed = {name: f"q{i}" for i, name in enumerate(self.bases)}
        parameters = tuple(f"{self.ctypes[name]}* const {new}" for name, new in renamed.items())
        return parameters, BASE.sub(lambda found: renamed.get(found[0], found[0]), self.text)


@dataclass(frozen=True)
class SharedCode:
    """A function that several calls share."""

    name: str
    parameters: tuple[str, ...]
    text: str


def shared(bodies: Sequence[Sequence[Site]],
           ) -> tuple[tuple[SharedCode, ...], list[list[Site]]]:
    """The functions that two or more calls share, and the calls of every body; the text of those
    that share one is a call of it."""
    found = [[site.function for site in body] for body in bodies]
    times = Counter(key for keys in found for key in keys)
    functions: dict[tuple[tuple[str, ...], str], SharedCode] = {}
    new: list[list[Site]] = []
    for body, keys in zip(bodies, found, strict=True):
        new.append([])
        for site, key in zip(body, keys, strict=True):
            if times[key] > 1 and site.op != "repeat":
                known = functions.setdefault(key, SharedCode(f"{site.op}{len(functions)}", *key))
                arguments = ", ".join(("team", *site.bases, "d"))
                site = replace(site, text=f"  {known.name}({arguments});\n", callee=known)
            new[-1].append(site)
    return tuple(functions.values()), new
