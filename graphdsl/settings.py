"""Fields of a config, set by text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from graphdsl.errors import GraphError


def configured(config: Any, settings: Mapping[str, str]) -> Any:
    """`config` (a dataclass) with the fields that `--set` names, read as their present type.

    Raises GraphError for an unknown field or text that is not of that type.
    """
    if not settings:
        return config
    names = [f.name for f in fields(config)] if is_dataclass(config) else []
    known = {name: getattr(config, name) for name in names}
    changes: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in known:
            raise GraphError(f"--set {name}={text}: the config has no field {name}",
                             hint=f"fields: {', '.join(known) or 'none'}")
        changes[name] = read_setting(name, text, known[name])
    return replace(config, **changes)


def read_setting(name: str, text: str, present: Any) -> Any:
    """`text` as a value of the type that `present` has. Raises GraphError if it is none."""
    words = {"true": True, "false": False}
    try:
        if isinstance(present, bool):
            return words[text.lower()]
        return type(present)(text) if isinstance(present, int | float | str) else present
    except (ValueError, KeyError):
        raise GraphError(f"--set {name}={text}: {text!r} is not {type(present).__name__}",
                         hint=f"the default is {present}") from None
