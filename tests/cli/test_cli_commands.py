"""What the commands print and return when all is well, or when a check fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from clicase import PEER, SMALL, Cli

import graphdsl
from graphdsl.passes.base import CheckFailed

BUILT = r"built Small for cpu in \d+\.\d+ s: (.+)"


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(SMALL + PEER)


def test_build_prints_a_line_a_stage(cli: Cli) -> None:
    result = cli("build", "layer.py")
    assert (result.code, result.err) == (0, "")
    stages = [line.split()[0] for line in result.out.splitlines()]
    assert stages == ["trace", "passes", "render", "memory", "compile", "built"]
    assert "of the lower bound" in result.out
    found = re.fullmatch(BUILT, result.last)
    assert found
    assert graphdsl.load(found[1]).name == "Small"


def test_out_gets_sources_library_and_manifest(here: Path, cli: Cli) -> None:
    for _ in range(2):
        result = cli("build", "layer.py", "--out", "new/built")
        assert result.last.endswith(": new/built")
        names = {p.name for p in (here / "new" / "built").iterdir()}
        assert {"src", "library.so", "manifest.json"} <= names
    assert [p.name for p in (here / "new").iterdir()] == ["built"]
    assert (here / "new" / "built" / "src" / "Small.cpp").is_file()
    manifest = json.loads((here / "new" / "built" / "manifest.json").read_text())
    assert [port["name"] for port in manifest["inputs"]] == ["x"]


def test_emit_only_needs_no_compiler(here: Path, cli: Cli,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    result = cli("build", "layer.py", "--emit-only", "--out", "sources")
    assert result.code == 0
    assert {p.name for p in (here / "sources").iterdir()} == {"src", "manifest.json"}


def test_equal_input_gives_equal_bytes(here: Path, cli: Cli) -> None:
    for folder in ("a", "b"):
        assert cli("build", "layer.py", "--emit-only", "--out", folder).code == 0
    for path in (p for p in (here / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (here / "b" / path.relative_to(here / "a")).read_bytes()


def test_verify_runs_the_reference(cli: Cli) -> None:
    assert cli("build", "layer.py", "--verify", "--emit-only", "--out", "out").code == 0


def test_failed_check_is_exit_code_1(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CheckFailed("pass loops changes the numbers")

    monkeypatch.setattr("graphdsl.builder.run_pipeline", fail)
    result = cli("build", "layer.py", "--verify")
    assert (result.code, result.err) == (1, "error: pass loops changes the numbers\n")


def test_show(cli: Cli) -> None:
    plain = cli("show", "layer.py").out
    assert plain.startswith("graph Small:\n  input %x : f32[batch, tokens, 8]\n")
    assert "layer.py:24" in plain
    loops = cli("show", "layer.py", "--after", "loops").out
    assert "matmul_epilogue" in loops
    everything = cli("show", "layer.py", "--all").out
    assert everything.startswith("== trace ==\n" + plain)
    assert everything.rstrip().endswith(("no change ==", loops.rstrip()))
    assert loops.rstrip() in everything


def test_explain(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text(SMALL.replace(
        "return silu(linear(x, self.w)) * self.config.scale + x",
        "h = linear(x, self.w)\n        s = silu(h)\n        return s * h + s"))
    result = cli("explain", "layer.py")
    assert result.code == 0
    assert re.search(r"missed +SiluMul at layer\.py:26: .+", result.out)
    assert re.search(r"fired \w+( times)?, nearly \w+", result.last)
    only = cli("explain", "layer.py", "--rule", "SiluMul").out
    assert "MatmulEpilogue" not in only
    assert only.splitlines()[-1] == "SiluMul fired 0 times, nearly once"


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_run(dtype: str, cli: Cli) -> None:
    result = cli("run", "layer.py", "--dtype", dtype, "--batch", "2", "--tokens", "5",
                 "--past", "3", "--seed", "4")
    assert result.code == 0, result
    found = re.match(r"max relative error (\S+) \(tolerance (\S+)\), 0 of 80 elements outside",
                     result.last)
    assert found
    assert float(found[1]) <= float(found[2])


MASKED = '''\
from graphdsl import KVCache, Layer
from graphdsl.ops import arange, reshape, softmax, transpose, where


class Masked(Layer):
    signature = "x[batch, tokens, 8], positions[batch, tokens]:i32 -> y[batch, tokens, 8]"

    def __init__(self):
        self.kv = KVCache(2, 4)

    def forward(self, x, positions):
        batch, tokens, _ = x.shape
        heads = reshape(x, shape=(batch, tokens, 2, 4))
        kv = self.kv.append(heads, heads, positions)
        q, v = (transpose(each, order=(0, 2, 1, 3)) for each in (heads, kv.v))
        scores = q @ transpose(kv.k, order=(0, 2, 3, 1)) / 2.0
        seen = arange(size=v.shape[2]) <= reshape(positions, shape=(batch, 1, tokens, 1))
        weights = softmax(where(seen, scores, float("-inf")))
        return reshape(transpose(weights @ v, order=(0, 2, 1, 3)), shape=(batch, tokens, 8))
'''
"""In its own maths, a row of padding sees no key and is nan."""


def test_run_passes_over_rows_of_padding(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text(MASKED)
    result = cli("run", "layer.py", "--batch", "2", "--tokens", "3", "--past", "2")
    assert result.code == 0, result


def test_run_above_the_tolerance(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphdsl.commands.run.TOLERANCE", {"f32": 0.0})
    result = cli("run", "layer.py", "--tokens", "5")
    assert result.code == 1
    assert "(tolerance 0)" in result.last


def test_bench(here: Path, cli: Cli) -> None:
    result = cli("bench", "layer.py", "--tokens", "3", "--vs", "eager", "--seconds", "0.01",
                 "--json", "figures.json")
    assert result.code == 0, result
    report = json.loads((here / "figures.json").read_text())
    assert {"cpu", "cores", "threads", "torch"} <= report["machine"].keys()
    assert [r["impl"] for r in report["results"]] == ["graphdsl", "eager"]
    for row in report["results"]:
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["runs"] >= 5
    assert report["case"]["config"] == {"hidden": 8, "scale": 2.0, "gate": True}
    assert result.last.startswith("graphdsl is ")


def test_bench_refuses_a_peer_that_computes_something_else(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text(SMALL + PEER.replace("config.scale", "3"))
    result = cli("bench", "layer.py", "--vs", "eager")
    assert result.code == 1
    assert "eager of layer.py computes something else" in result.err


def test_bench_without_a_peer(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text(SMALL)
    assert cli("bench", "layer.py", "--seconds", "0.01").code == 0
    result = cli("bench", "layer.py", "--vs", "eager")
    assert result.code == 2
    assert "layer.py:1: layer.py defines no peer(config)" in result.err


def test_doctor(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("doctor")
    assert (result.code, result.last) == (0, "everything needed is there")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    result = cli("doctor")
    assert (result.code, result.last) == (
        3, "something that is needed is missing: cpu: C++ compiler")
    assert re.search(r"MISSING +cpu: C\+\+ compiler: .*/nowhere/g\+\+", result.out)


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"graphdsl {graphdsl.__version__}\n"
    for command in ("build", "show", "explain", "run", "bench", "generate", "doctor"):
        assert cli(command, "--help").out.startswith(f"usage: graphdsl {command}")


def test_public_names() -> None:
    for name in graphdsl.__all__:
        assert getattr(graphdsl, name) is not None
    assert callable(graphdsl.build)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = graphdsl.nope
