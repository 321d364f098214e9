"""graphdsl bench --roofline: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from clicase import SMALL, Cli, Refused

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def quick(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file to measure, and short measurements on a machine with a small cache."""
    (here / "layer.py").write_text(SMALL)
    monkeypatch.setattr("graphdsl.backends.cpu.machine.SECONDS", 0.0)
    monkeypatch.setattr("graphdsl.backends.cpu.machine.cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr("graphdsl.commands.roofline.TORCH_SECONDS", 0.0)
    monkeypatch.setattr("graphdsl.commands.roofline.SIZES", (64,))


@pytest.fixture
def found(cli: Cli, here: Path) -> dict[str, Any]:
    """What is written for one small layer."""
    result = cli("bench", "layer.py", "--roofline", "--seconds", "0.01", "--set", "hidden=64",
                 "--tokens", "3", "--json", "found.json", "--plot", "found.svg")
    assert result.code == 0, result
    assert "by own loops" in result.out
    assert "measured" in result.out
    assert "layer.py:" in result.out
    begins = [line.partition(" ")[0] for line in result.out.splitlines()]
    assert {"machine", "call", "matmul_epilogue", "step", "calls", "between"} <= set(begins)
    read: dict[str, Any] = json.loads((here / "found.json").read_text())
    return read


def test_figures_and_plot(found: dict[str, Any], here: Path) -> None:
    """Calls and what is between them make up the step; the bytes and operations are those of the
    layer; and every limit is the larger of two rulers."""
    call = found["calls"][0]
    assert len(found["calls"]) == 1
    weight, rows = 64 * 64, 3 * 64
    assert (call["op"], call["turns"], call["kind"]) == ("matmul_epilogue", 1, "f32")
    assert call["line"].startswith("layer.py:")
    assert call["bytes"] == call["memory_bytes"] == 4 * (weight + 2 * rows)
    assert call["operations"] > 2 * 3 * weight
    step, machine = found["step"], found["machine"]
    assert math.isclose(step["calls_ms"] + step["between_ms"], step["ms"])
    assert step["bytes"] == call["bytes"]
    assert found["copies"] > 1
    for name, limit in machine["limits"].items():
        rulers = (machine["own_loops"]["limits"][name], machine["by_torch"][name])
        assert limit >= max(rulers) > 0
    drawn = ElementTree.fromstring((here / "found.svg").read_text())
    titles = [dot.findtext(f"{SVG}title") or "" for dot in drawn.iter(f"{SVG}circle")]
    assert len(titles) == 1
    assert titles[0].startswith(f"matmul_epilogue {call['line']}")
    assert len(list(drawn.iter(f"{SVG}polyline"))) >= 2


@pytest.mark.parametrize(("argv", "wanted"), [
    ("--roofline --backend ascend", "the ascend backend does not measure its calls"),
    ("--roofline --vs eager", "--roofline and --vs are two measurements"),
    ("--roofline --plot .", "--plot .: this is a folder"),
    ("--roofline --plot no/such/file.svg", "there is no folder no/such"),
    ("--roofline --json .", "--json .: this is a folder"),
    ("--plot file.svg", "--plot is a part of --roofline"),
    ("--fresh", "--fresh is a part of --roofline"),
])
def test_refused(argv: str, wanted: str, refused: Refused) -> None:
    assert wanted in refused("bench", "layer.py", *argv.split())


def test_a_file_that_cannot_be_written_to(here: Path, refused: Refused,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the answer of the system is given by hand.
    (here / "taken.svg").write_text("mine")
    monkeypatch.setattr("graphdsl.commands.figures.os.access",
                        lambda path, mode: Path(path).name != "taken.svg")
    assert "taken.svg: cannot be written to" in refused("bench", "layer.py", "--roofline",
                                                        "--plot", "taken.svg")


def test_no_compiler(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in refused("bench", "layer.py", "--roofline", code=3)
