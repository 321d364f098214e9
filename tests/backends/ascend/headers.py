"""The emulation's headers as text: structs with their fields and defaults, enumerators."""

from __future__ import annotations

import re
from functools import cache

from graphdsl.backends.ascend.emulation_build import INCLUDE

Defaults = dict[str, str]
FIELD = re.compile(r"([\w:]+(?:<[^;=]*>)?)\s*\*?\s*(\w+)(?:\[\w+\])?(?:\s*=\s*([^;]+))?$")


@cache
def text(name: str) -> str:
    """A header without its comments."""
    return re.sub(r"//[^\n]*", "", (INCLUDE / name).read_text())


def body(name: str, header: str) -> str:
    """What stands between the braces of a struct or class."""
    found = re.search(rf"\b(?:struct|class) {name} {{", text(header))
    assert found, name
    depth, start = 1, found.end()
    for i, letter in enumerate(text(header)[start:], start):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text(header)[start:i]
    raise AssertionError(name)


def fields(name: str, header: str) -> Defaults:
    """The defaults of a struct's fields; "" where there is none."""
    inner = re.sub(r"\b(?:enum|struct) [^;{]*{(?:[^{}]|{[^{}]*})*};", "", body(name, header))
    found: Defaults = {}
    for statement in inner.split(";"):
        for part in statement.replace("{0}", "0").split(","):
            match = FIELD.search(part.strip()) or re.search(r"()\b(\w+) = (.*)", part.strip())
            if match and "(" not in part:
                found[match[2]] = (match[3] or "").strip()
    return found


def enumerators(name: str, header: str, within: str = "") -> dict[str, int]:
    """The numbers of an enum's names, counted as C++ counts them."""
    where = body(within, header) if within else text(header)
    pattern = rf"enum {name}\b[^{{]*{{([^}}]*)}}|typedef enum {{([^}}]*)}} {name};"
    match = re.search(pattern, where)
    assert match, name
    numbers: dict[str, int] = {}
    following = 0
    for part in filter(None, map(str.strip, (match[1] or match[2]).split(","))):
        key, _, value = part.partition("=")
        following = int(value) if value else following
        numbers[key.strip()] = following
        following += 1
    return numbers
