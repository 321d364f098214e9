"""The emulation's operations, the runner and generated libraries under AddressSanitizer and
UndefinedBehaviorSanitizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from emulationcase import compile_program, run_program
from sanitizecase import SANITIZE, Sanitized

from graphdsl.backends.ascend.emulation_build import build_emulation

pytestmark = [
    pytest.mark.full,
    pytest.mark.sanitize,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

LAYER = Path(__file__).parents[3] / "examples" / "llama_layer.py"
SMALL = ("--set hidden=64 --set heads=4 --set kv_heads=2 --set head_dim=16 --set ffn=96 "
         "--backend ascend")
CONTIGUOUS = "--pass kv_layout:policy=contiguous"
PREFILL, DECODE, CHUNK = ("--batch 2 --tokens 5", "--batch 2 --tokens 1 --past 130",
                          "--batch 2 --tokens 3 --past 4")
LIBRARIES = {
    "--soc 910b": (PREFILL, DECODE, CHUNK),
    "--soc 910b --dtype bf16 --pass weight_format:format=nz": (PREFILL, DECODE),
    f"--soc 910b {CONTIGUOUS}": (PREFILL, CHUNK),
    "--soc 310p": (PREFILL, DECODE, CHUNK),
    "--soc 310p --pass weight_format:format=nd": (DECODE,),
    f"--soc 310p {CONTIGUOUS}": (PREFILL, CHUNK),
}


def test_ops_sanitized(sanitized: Sanitized, tmp_path: Path) -> None:
    archive = build_emulation(sanitized.cache, sanitized.environment)
    run_program(compile_program("ops_sanitized", archive, tmp_path, SANITIZE))


def test_libraries_sanitized(sanitized: Sanitized) -> None:
    """Prefill, decode and contiguous, of both SoCs, with weights in rows and in tiles."""
    sanitized.build([f"build {LAYER} {SMALL} {made}" for made in LIBRARIES])
    built = [path.read_bytes() for path in sanitized.cache.glob("*/library.so")]
    assert len(built) == len(LIBRARIES)
    assert all(b"__asan_" in library and b"__ubsan_" in library for library in built)
    sanitized.run([f"run {LAYER} {SMALL} {made} {sizes}" for made, calls in LIBRARIES.items()
                   for sizes in calls])
