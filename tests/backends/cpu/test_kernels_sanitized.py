"""The kernel tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from kernelcase import HERE, PROGRAMS, compile_program, compile_source, cpu_flags, run_program

SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = ("-O1", "-g", "-fsanitize=thread", '-DGD_RUN_TEAM="plain_threads.hpp"', f"-I{HERE}")

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


@pytest.mark.full
@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_do_not_race(program: str, tmp_path: Path) -> None:
    flags = ("-mavx2", "-mfma") if cpu_flags() >= {"avx2", "fma"} else ()
    run_program(compile_program(program, (*THREADS, *flags), tmp_path))


@pytest.mark.full
def test_a_race_is_found(tmp_path: Path) -> None:
    """What the test above looks for does show where a barrier is missing."""
    source = tmp_path / "test_race.cpp"
    source.write_text('''#include "team.hpp"
int main() {
  int shared = 0;
  gd::run_team(2, [&](const gd::Team& team) {
    if (team.id == 0) shared = 1;
    BARRIER
    if (team.id == 1 && shared == 2) __builtin_trap();
  });
}
''')
    for barrier, code in (("team.barrier();", 0), ("", 66)):
        binary = compile_source(source, (*THREADS, f"-DBARRIER={barrier}"), tmp_path / "race")
        assert subprocess.run([str(binary)], capture_output=True).returncode == code
