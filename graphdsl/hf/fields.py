"""Typed reading of the JSON files of a model's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphdsl.errors import GraphError


def read_json(path: Path) -> dict[str, Any]:
    """The object that the JSON file holds. Raises GraphError if it is missing, truncated, not UTF-8
    or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GraphError(f"{path}: no such file") from error
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        hint = "the file may be truncated: copy or download it again"
        raise GraphError(f"{path}: not valid JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise GraphError(f"{path}: holds a {type(value).__name__}; wanted: a JSON object")
    return value


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Fields:
    """Typed reading of a JSON object: a missing or mistyped entry is a GraphError with its name."""

    path: Path
    values: dict[str, Any]

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._mistyped(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._mistyped(key, value, "a number")
        if not math.isfinite(value):
            raise self._mistyped(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._mistyped(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._mistyped(key, value, "a text")
        return value

    def choice(self, key: str, supported: Sequence[str], default: str) -> str:
        """The text under this key, which has to be one of those supported."""
        value = self.text(key, default)
        if value not in supported:
            known = ", ".join(map(repr, supported))
            raise GraphError(f"{self.path}: {key!r} is {value!r}; supported: {known}")
        return value

    def only(self, key: str, wanted: Any, supported: str) -> None:
        """Refuses any value but `wanted`, which a missing one stands for; `supported` says which
        models are meant."""
        value = self._get(key, wanted)
        if type(value) is not type(wanted):
            raise self._mistyped(key, value, _KINDS[type(wanted)])
        if value != wanted:
            raise GraphError(f"{self.path}: {key!r} is {json.dumps(value)}; supported: {supported}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty where the key is missing or null."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._mistyped(key, value, "a list of texts")
        return tuple(value)

    def mapping(self, key: str) -> Fields:
        """The object under this key; an empty one where the key is missing or null."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._mistyped(key, value, "an object")
        return Fields(self.path, value)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids: one number, a list of numbers, or nothing."""
        value = self._get(key, [])
        found = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in found):
            raise self._mistyped(key, value, "a token id or a list of them")
        return tuple(found)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise GraphError(f"{self.path}: {key!r} is missing")
        return default

    def _mistyped(self, key: str, value: Any, wanted: str) -> GraphError:
        return GraphError(f"{self.path}: {key!r} is {value!r}; wanted: {wanted}")
