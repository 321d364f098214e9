"""Compiles the kernel tests for every instruction set, runs them, and checks what it costs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kernelcase import COMMON, KERNELS, PROGRAMS, compile_program, cpu_flags, run_program

AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@dataclass(frozen=True)
class Variant:
    """One way to compile the kernels; where the CPU lacks some of its features, they are compiled
    alone."""

    name: str
    flags: tuple[str, ...]
    needs: tuple[str, ...] = ()


VARIANTS = (
    Variant("plain", ("-O2",)),
    Variant("plainO3", ("-O3",)),
    Variant("avx2", ("-O2", "-mavx2", "-mfma", "-mf16c"), ("avx2", "fma", "f16c")),
    Variant("avx2O3", ("-O3", "-mavx2", "-mfma", "-mf16c"), ("avx2", "fma", "f16c")),
    Variant("lanes16", ("-O1", "-mavx2", "-mfma", "-DGD_LANES=16", "-DGD_EMULATE_BF16_DOT",
                        "-DGD_EMULATE_BYTES"), ("avx2", "fma")),
    Variant("avx512", ("-O2", *AVX512), ("avx512f", "avx512bw", "avx512dq", "avx512vl")),
    Variant("avx512bf16", ("-O2", *AVX512, "-mavx512bf16", "-mavx512vnni"),
            ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni")),
)


SLOW = ("lanes16-attention", "lanes16-matmul", "lanes16-quant", "plain-attention", "plain-matmul",
        "plain-memory", "plain-quant", "avx512bf16-quant")
WHOLE = ("plainO3", "avx2O3", "avx512")


def cases() -> Iterator[Any]:
    """Every program in every variant; avx512bf16 has what avx512 has, and more, and tests/cpu has
    what -O3 makes of them."""
    for variant in VARIANTS:
        for program in PROGRAMS:
            name = f"{variant.name}-{program}"
            slow = name in SLOW or variant.name in WHOLE or program == "quant_formats"
            yield pytest.param(variant, program, id=name, marks=pytest.mark.full if slow else ())


@pytest.mark.parametrize(("variant", "program"), list(cases()))
def test_against_double_reference(variant: Variant, program: str, tmp_path: Path) -> None:
    if cpu_flags() >= set(variant.needs):
        run_program(compile_program(program, variant.flags, tmp_path))
    else:
        compile_program(program, (*variant.flags, "-O0", "-c"), tmp_path)


USES = """
#include "attention.hpp"
#include "kv.hpp"
#include "matmul_batched.hpp"
#include "misc.hpp"
#include "workspace.hpp"
using namespace gd;
template <class T> void use(const Team& team) {
  const T* const one[1] = {};
  const T* const two[2] = {};
  T* y = nullptr;
  matmul<1>(team, y, 1, one, 1, 1, 1, nullptr,
            [&](i64, i64 c, auto l, F a) { store(y + c, a, l); });
  matmul<2>(team, y, 1, two, 1, 1, 1, nullptr,
            [&](i64, i64 c, auto l, F a, F b) { store(y + c, a * v_sigmoid(a) * b, l); });
  embedding(team, nullptr, 1, y, 1, 1, y, 1);
  rope_append(team, RopeAppend<T>{}, nullptr);
  attention(team, Attention<T>{}, nullptr);
  pack(y, y, 1, 1);
}
void all(int threads) { run_team(threads, [](const Team& team) { use<float>(team); }); }
"""


def test_one_unit_with_every_kernel_compiles(tmp_path: Path) -> None:
    """What a layer needs, in one translation unit."""
    source = tmp_path / "uses.cpp"
    source.write_text(USES)
    command = ["g++", *COMMON, "-O1", "-mavx2", "-mfma", f"-I{KERNELS}", "-c", str(source),
               "-o", str(tmp_path / "uses.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
