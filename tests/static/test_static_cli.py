"""--static and --pass static on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from staticcase import folders, has_dims

from graphdsl.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
GLM = EXAMPLES / "chatglm2_layer.py"
SMALL = [f"--set={each}" for each in ("hidden=32", "heads=4", "kv_heads=2", "head_dim=8",
                                      "ffn=48")]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
        capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command; gives its exit code and what it wrote."""
    monkeypatch.setenv("GRAPHDSL_CACHE", str(tmp_path / "cache"))

    def called(*argv: str | Path) -> tuple[int, str, str]:
        code = main([str(each) for each in argv])
        return code, *capfd.readouterr()

    return called


def test_build_writes_both_parts(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = cli("build", GLM, *SMALL, "--static", "256", "--emit-only", "--out", out)
    assert code == 0
    names = ["ChatGLM2Layer_block", "ChatGLM2Layer_block_cache"]
    assert [line.split(" in ")[0] for line in printed.splitlines()
            if line.startswith("emitted")] == [f"emitted {name} for cpu" for name in names]
    assert folders(out) == names
    for name in names:
        manifest = json.loads((out / name / "manifest.json").read_text())
        assert manifest["name"] == name
        assert manifest["dims"] == []
        assert not has_dims(manifest)


def test_build_writes_the_part_that_is_named(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = cli("build", GLM, *SMALL, "--pass", "static:length=16,part=block_cache",
                           "--pass", "static:cache=append", "--emit-only", "--out", out)
    assert code == 0
    assert printed.splitlines()[-1].startswith("emitted ChatGLM2Layer_block_cache for cpu")
    manifest = json.loads((out / "manifest.json").read_text())
    assert [o["shape"] for o in manifest["outputs"]] == [[1, 1, 32], *[[1, 1, 2, 8]] * 2]


def test_show_and_explain_take_a_part(cli: Cli) -> None:
    code, shown, _ = cli("show", GLM, *SMALL, "--static", "8")
    assert (code, shown.splitlines()[0]) == (0, "graph ChatGLM2Layer_block:")
    assert "attention(" in shown
    assert "%mask, causal=False" in shown
    code, said, _ = cli("explain", GLM, *SMALL, "--pass", "static:length=8,part=block_cache",
                        "--rule", "SiluMul")
    assert code == 0
    assert "fired   SiluMul" in said


def test_verify_runs_every_pass(cli: Cli) -> None:
    code, _, error = cli("build", GLM, *SMALL, "--static", "8", "--emit-only", "--verify")
    assert (code, error) == (0, "")


@pytest.mark.parametrize(("options", "message"), [
    (["--pass", "static:length=0"], "static: length is 0, wanted a whole number above 0"),
    (["--pass", "static:part=block"], "static: length is 0, wanted a whole number above 0"),
    (["--pass", "static:size=8"], "pass static has no option size"),
    (["--pass", "static:length=many"], "'many' is not a whole number"),
    (["--pass", "static:length=8,part=both"], "'both' is not a choice"),
    (["--pass", "static:length=8,cache=ring"], "'ring' is not a choice"),
])
def test_options_that_are_none(cli: Cli, options: list[str], message: str) -> None:
    code, _, error = cli("build", GLM, *SMALL, *options)
    assert code == 2
    assert message in error


def test_a_backend_whose_attention_reads_its_own_caches(cli: Cli) -> None:
    code, _, error = cli("build", GLM, *SMALL, "--static", "8", "--backend", "ascend")
    assert code == 2
    assert "the ascend backend takes no static graphs" in error


def test_what_has_no_fixed_length(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, error = cli("build", EXAMPLES / "bert_layer.py", "--static", "8")
    assert code == 2
    assert "BertLayer has no caches and no positions" in error
    code, _, error = cli("bench", GLM, *SMALL, "--static", "8", "--vs", "eager")
    assert code == 2
    assert "--vs: peer(config) of a file takes neither masks nor padding" in error
    with pytest.raises(SystemExit) as stopped:
        cli("build", GLM, "--static", "0")
    assert stopped.value.code == 2
    assert "0 is too small: at least 1" in capfd.readouterr().err
