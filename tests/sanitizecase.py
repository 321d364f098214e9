"""A compiler that puts everything under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RUN = """\
import sys

from graphdsl.cli import main

for line in sys.argv[1:]:
    code = main(line.split())
    assert code == 0, (code, line)
"""


@dataclass(frozen=True)
class Sanitized:
    """Commands of graphdsl whose compiler does so, with a cache of their own."""

    folder: Path

    def __post_init__(self) -> None:
        compiler = self.folder / "g++"
        compiler.write_text(f'#!/bin/sh\nexec g++ "$@" {" ".join(SANITIZE)}\n')
        compiler.chmod(0o755)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def environment(self) -> dict[str, str]:
        left = {k: v for k, v in os.environ.items() if k not in ("ATB_HOME_PATH",
                                                                 "ASCEND_HOME_PATH")}
        return {**left, "CXX": str(self.folder / "g++"), "GRAPHDSL_CACHE": str(self.cache)}

    def build(self, lines: Sequence[str]) -> None:
        """Each line is a command that builds."""
        self._run(lines, self.environment)

    def run(self, lines: Sequence[str]) -> None:
        """Each line is a command whose library is built already. All are one process, into which
        the sanitizer comes first. Leaks are those of Python."""
        asked = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True,
                               text=True, check=True)
        self._run(lines, {**self.environment, "LD_PRELOAD": asked.stdout.strip(),
                          "ASAN_OPTIONS": "detect_leaks=0"})

    def _run(self, lines: Sequence[str], environment: dict[str, str]) -> None:
        done = subprocess.run([sys.executable, "-c", RUN, *lines], env=environment,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


__all__ = ["SANITIZE", "Sanitized"]
