"""Running the CLI on files that a test writes, and watching what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from clicase import Cli, Refused, Result, tree

from graphdsl.cli import main


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared-cache")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(here: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process; builds of all tests share a cache."""
    monkeypatch.setenv("GRAPHDSL_CACHE", str(shared_cache))

    def run(*argv: str | Path) -> Result:
        capfd.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = int(str(stop.code))
        printed = capfd.readouterr()
        return Result(code, printed.out, printed.err)

    return run


@pytest.fixture
def own_cache(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that only this test uses; it does not exist yet."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("GRAPHDSL_CACHE", str(cache))
    return cache


@pytest.fixture
def refused(cli: Cli, here: Path, shared_cache: Path) -> Refused:
    """`refused(*argv)`: exit code 2, one message without a traceback, which is returned; and no
    file has come or gone."""
    def run(*argv: str | Path, code: int = 2) -> str:
        before = tree(here, shared_cache)
        result = cli(*argv)
        assert result.code == code, result
        assert "error: " in result.err
        assert "Traceback" not in result.err + result.out
        assert tree(here, shared_cache) == before
        return result.err

    return run
