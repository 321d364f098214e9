"""The emulation's operations under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from emulationcase import SANITIZE, SANITIZED, compile_program, run_program

from graphdsl.backends.ascend.emulation_build import build_emulation

pytestmark = [
    pytest.mark.full,
    pytest.mark.sanitize,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def test_ops_sanitized(emulation: Path, tmp_path: Path) -> None:
    archive = build_emulation(emulation, os.environ, SANITIZED)
    run_program(compile_program("ops_sanitized", archive, tmp_path, SANITIZE))
