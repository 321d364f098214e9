"""Sizes and placements in Python against those that the headers compute."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from kernelcase import COMMON, KERNELS

from graphdsl.backends.cpu.scratch import Scratch
from graphdsl.placement import Live, bound_of, peak_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

CALLS = (
    "matmul_scratch({rows}, {n}, {k}, 1, {threads})",
    "matmul_scratch({rows}, {n}, {k}, 2, {threads})",
    "quant_scratch({rows}, {n}, {k}, 2, {threads})",
    "expert_scratch({rows}, {experts}, {k}, {threads})",
    "attention_scratch({t}, {g} * {h}, {g}, {d}, {e}, {g}, {threads})",
    "round_up({k}, 64) + padded({n}) * 4 + most({rows}, {k})",
)


def drawn(draw: random.Random) -> list[str]:
    """One call of every kind, with numbers in it."""
    limits = {"rows": 1200, "n": 300, "k": 300, "threads": 8, "b": 3, "t": 40, "g": 4, "h": 6,
              "d": 200, "e": 200, "experts": 40}
    numbers = {name: draw.randint(1, most) for name, most in limits.items()}
    return [call.format(**numbers) for call in CALLS]


def drawn_live(draw: random.Random) -> list[Live]:
    found = []
    for _ in range(draw.randint(1, 40)):
        start = draw.randrange(30)
        found.append(Live(draw.choice([0, draw.randrange(5000), 64 * draw.randrange(9)]), start,
                          start + draw.randrange(9)))
    return found


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_against_the_headers(lanes: int, tmp_path: Path) -> None:
    draw = random.Random(lanes)
    calls = [call for _ in range(40) for call in drawn(draw)]
    lives = [drawn_live(draw) for _ in range(60)]
    lines = [f'  printf("%ld\\n", long({call}));' for call in calls]
    for live in lives:
        listed = ", ".join(f"{{{b.bytes}, {b.start}, {b.end}}}" for b in live)
        lines.append(f"  {{ const Live b[] = {{{listed}}}; i64 at[64]; "
                     f'printf("%ld %ld\\n", long(place(b, {len(live)}, at)), '
                     f"long(lower_bound(b, {len(live)}))); }}")
    source = tmp_path / "sizes.cpp"
    source.write_text('#include <stdio.h>\n#include "graphdsl.hpp"\n'
                      '#include "matmul_quant.hpp"\nusing namespace gd;\n'
                      "int main() {\n" + "\n".join(lines) + "\n}\n")
    binary = tmp_path / "sizes"
    subprocess.run(["g++", *COMMON, "-O0", f"-DGD_LANES={lanes}", f"-I{KERNELS}", str(source),
                    "-o", str(binary)], check=True)
    printed = subprocess.run([str(binary)], check=True, capture_output=True,
                             text=True).stdout.splitlines()
    ours = [str(Scratch(lanes, 1).bytes(call, {})) for call in calls]
    ours += [f"{peak_of(live)} {bound_of(live)}" for live in lives]
    assert ours == printed
