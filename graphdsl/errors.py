"""The errors that a user can cause, and where in their file they did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Loc:
    """A line of the user's file. Printed with the file's name only, so that nothing generated
    depends on where a checkout lies."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"


class GraphError(Exception):
    """The user's input is wrong: what was found, what was wanted, and a hint (exit code 2)."""

    def __init__(self, message: str, loc: Loc | None = None, hint: str = "") -> None:
        self.message = message
        self.loc = loc
        self.hint = hint
        where = f"{loc}: " if loc else ""
        super().__init__(where + message + (f"\n  hint: {hint}" if hint else ""))


class ToolError(Exception):
    """A tool is missing or failed: the command and the first lines it printed (exit code 3)."""

    LINES = 20

    def __init__(self, message: str, command: str = "", output: str = "") -> None:
        self.command = command
        self.output = output
        parts = [message]
        if command:
            parts.append(f"  command: {command}")
        lines = output.strip().splitlines()
        parts += [f"  | {line}" for line in lines[: self.LINES]]
        if len(lines) > self.LINES:
            parts.append(f"  | ... {len(lines) - self.LINES} more lines")
        super().__init__("\n".join(parts))
