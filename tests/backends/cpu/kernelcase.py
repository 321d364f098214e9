"""How the kernel tests are compiled and run."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "backends" / "cpu" / "kernels"
PROGRAMS = ("simd", "memory", "kv", "matmul", "attention", "quant", "quant_formats")
COMMON = ("-std=c++17", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-Wno-psabi")


def cpu_flags() -> frozenset[str]:
    """The features that the kernel reports for this CPU; empty where it reports none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(found.partition(":")[2].split())


def compile_program(program: str, flags: tuple[str, ...], out: Path) -> Path:
    return compile_source(HERE / f"test_{program}.cpp", flags, out / program)


def compile_source(source: Path, flags: tuple[str, ...], binary: Path) -> Path:
    command = ["g++", *COMMON, *flags, f"-I{KERNELS}", str(source), "-o", str(binary)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
    return binary


def run_program(binary: Path) -> None:
    done = subprocess.run([str(binary)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]
