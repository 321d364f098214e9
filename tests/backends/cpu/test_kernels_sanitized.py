"""The kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kernelcase import PROGRAMS, compile_program, cpu_flags, run_program

SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

pytestmark = [
    pytest.mark.sanitize,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


QUICK = ("simd", "kv")
CASES = [pytest.param(flags, program, id=f"{name}-{program}",
                      marks=() if name == "avx2" and program in QUICK else pytest.mark.full)
         for name, flags in (("plain", ()), ("avx2", ("-mavx2", "-mfma")))
         for program in PROGRAMS if program != "quant_formats"]


@pytest.mark.parametrize(("flags", "program"), CASES)
def test_sanitized(flags: tuple[str, ...], program: str, tmp_path: Path) -> None:
    if flags and not cpu_flags() >= {"avx2", "fma"}:
        pytest.skip("this CPU has no AVX2")
    run_program(compile_program(program, (*SANITIZE, *flags), tmp_path))
