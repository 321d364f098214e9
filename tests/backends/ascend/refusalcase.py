"""Wrong graphs as C++, unchecked, and what the emulation says to each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wrong_graphs import SIZES, Wrong

from graphdsl.backends.ascend.atb import Tensor
from graphdsl.backends.ascend.emulation_build import INCLUDE
from graphdsl.backends.ascend.render import DTYPES, FORMATS, render_graph, runner_files
from graphdsl.ir import size_value

HERE = Path(__file__).parent
SOCS = {"910b": "Ascend910B4", "310p": "Ascend310P3"}


@dataclass(frozen=True)
class Answer:
    """Where a graph was refused ("create" or "setup"), with which of ATB's codes, and why."""

    stage: str
    code: int
    sentence: str


def answers(cases: Sequence[Wrong], folder: Path, archive: Path) -> dict[str, Answer]:
    """By the names of the cases: all of them in one program, as rendered."""
    for name, text in runner_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    source, program = folder / "src" / "refusals.cpp", folder / "refusals"
    source.write_text(_source(cases))
    subprocess.run([os.environ.get("CXX") or "g++", "-std=c++17", "-O0", f"-I{INCLUDE}",
                    f"-I{folder / 'src'}", f"-I{HERE}", str(source), str(archive), "-fopenmp",
                    "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    lines = [line.split("\t") for line in printed.splitlines()]
    assert len(lines) == len(cases), printed
    return {case.name: Answer(stage, int(code), sentence)
            for case, (stage, code, sentence) in zip(cases, lines, strict=True)}


def _source(cases: Sequence[Wrong]) -> str:
    parts = ['#include "refusals.hpp"\n']
    rows = []
    for i, case in enumerate(cases):
        # A function has a name of its own; the graph keeps the one that may be wrong.
        text = render_graph(replace(case.graph, name=f"Case{i}"))
        text = text.replace(f'graph("Case{i}"', f'graph("{case.graph.name}"')
        given = [*case.graph.inputs, *case.graph.outputs]
        listed = ",\n  ".join(map(_given, given))
        parts.append(f"namespace case{i} {{\n{text}const refusals::Given GIVEN[] = {{\n"
                     f"  {listed}}};\n}}\n")
        rows.append(f'  {{"{SOCS[case.soc]}", case{i}::CreateCase{i}, case{i}::GIVEN, '
                    f"{len(case.graph.inputs)}, {len(case.graph.outputs)}}},\n")
    return "".join([*parts, "const refusals::Case CASES[] = {\n", *rows, "};\n\n"
                    "int main() { return refusals::TryAll(CASES); }\n"])


def _given(tensor: Tensor) -> str:
    sizes = ", ".join(str(size_value(size, SIZES)) for size in tensor.shape)
    host = "true" if tensor.host else "false"
    return (f"{{{DTYPES[tensor.dtype]}, {FORMATS[tensor.format]}, {host}, {len(tensor.shape)}, "
            f"{{{sizes}}}}}")
