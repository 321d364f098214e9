"""Options that cannot be: exit code 2, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from clicase import SMALL, Refused


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(SMALL)


@pytest.mark.parametrize(("argv", "wanted"), [
    ("build layer.py --backend abacus", "no backend abacus\n  hint: backends: ascend, cpu"),
    ("build layer.py --dtype f8", "invalid choice: 'f8'"),
    ("build layer.py --dtype f16", "the cpu backend has no dtype f16"),
    ("build layer.py --pass nope:a=1", "no pass nope\n  hint: passes: "),
    ("build layer.py --pass loops:nope=1", "pass loops has no option nope"),
    ("build layer.py --pass loops:", "is not NAME:key=value"),
    ("build layer.py --pass loops", "'loops' is not NAME:key=value"),
    ("build layer.py --pass loops:x", "'x' is not key=value"),
    ("build layer.py --pass kv_layout:order=xyz", "'xyz' is not a choice"),
    ("build layer.py --pass kv_layout:order=bnsd,block=8", "only paged caches have blocks"),
    ("build layer.py --pass kv_layout:policy=paged,block=0", "a block has at least 1 slot"),
    ("generate nowhere --prompt x --pass kv_layout:block=8,order=sbnd", "only paged caches have"),
    ("build layer.py --frobnicate", "unrecognized arguments: --frobnicate"),
    ("build", "the following arguments are required: FILE"),
    ("frobnicate", "invalid choice: 'frobnicate'"),
    ("show layer.py --after nope", "no pass nope\n  hint: passes: "),
    ("show layer.py --format png", "invalid choice: 'png'"),
    ("explain layer.py --rule Nope", "no rule Nope\n  hint: rules: "),
    ("explain layer.py --rule matmulepilog", "no rule matmulepilog\n  hint: rules: MatmulEpilogue"),
    ("run layer.py --tokens -1", "-1 is too small: at least 1"),
    ("run layer.py --tokens 0", "0 is too small: at least 1"),
    ("run layer.py --batch -3", "-3 is too small: at least 1"),
    ("run layer.py --past -1", "-1 is too small: at least 0"),
    ("run layer.py --tokens many", "'many' is not a whole number"),
    ("run layer.py --tokens 99999999", "--tokens 99999999: Small takes 1 to 1048576"),
    ("run layer.py --seed -1", "-1 is too small: at least 0"),
    ("run layer.py --dim outputs=1", "--dim outputs: no such size of Small"),
    ("run layer.py --dim tokens=2", "--tokens and --past have options of their own"),
    ("run layer.py --dim tokens", "'tokens' is not key=value"),
    ("run layer.py --dim outputs=0", "0 is too small: at least 1"),
    ("bench layer.py --vs turbo", "'turbo' is neither eager nor compile"),
    ("bench layer.py --seconds 0", "0 is not a number above 0"),
    ("bench layer.py --json .", "--json .: this is a folder"),
    ("generate nowhere --prompt x", "nowhere: no such file or folder"),
    ("generate nowhere", "one of the arguments --prompt --prompt-ids --prompts is required"),
    ("generate nowhere --prompt x --temperature 0", "temperature is 0.0"),
    ("generate nowhere --prompt x --top-p 2", "top_p is 2.0"),
    ("generate nowhere --prompt x --max-new-tokens -1", "-1 is too small: at least 0"),
    ("generate nowhere --prompt-ids 1,two", "'two' is not a whole number"),
    ("generate nowhere --prompt-ids=", "no id is given"),
    ("generate nowhere --prompts missing.txt", "--prompts missing.txt: cannot be read: No such"),
    ("generate layer.py --prompt x", "layer.py"),
])
def test_refused(argv: str, wanted: str, refused: Refused) -> None:
    assert wanted in refused(*argv.split())


def test_out_is_a_file(here: Path, refused: Refused) -> None:
    (here / "taken").write_text("mine")
    assert "--out taken: this is a file" in refused("build", "layer.py", "--out", "taken")
    below = refused("build", "layer.py", "--out", "taken/below")
    assert "taken is a file" in below


def test_cache_is_a_file(here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "taken").write_text("mine")
    monkeypatch.setenv("GRAPHDSL_CACHE", str(here / "taken"))
    assert "taken: this is a file" in refused("build", "layer.py")
    monkeypatch.setenv("GRAPHDSL_CACHE", str(here / "taken" / "below"))
    assert "taken is a file" in refused("build", "layer.py")


def test_folder_without_rights(here: Path, refused: Refused,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the answer of the system is given by hand.
    monkeypatch.setattr("graphdsl.commands.session.os.access", lambda path, mode: False)
    assert "cannot be written to" in refused("build", "layer.py", "--out", "new")


def test_json_path_is_checked_before_the_build(refused: Refused) -> None:
    assert "there is no folder" in refused("bench", "layer.py", "--json", "no/such/file.json")
