"""Fixtures for all tests: `golden` compares text with a file under tests/golden, and random graphs
are counted out: a fixed sample of every kind, and with --seeds as many as that says."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzzreport import SAMPLE, failed_counts, summary
from quick import quick_compiler, quick_environment

GOLDEN = Path(__file__).parent / "golden"

DRAWN = {"graph_seeds": (1, 160, 40), "built_seeds": (10, 12, 20), "order_seeds": (10, 24, 24)}
"""Ranges of random graphs that a test takes: one in so many of --seeds, never fewer than the fixed
sample, and as many a test."""
QUICK = ("borders", "cli", "hf", "models", "runtime")
"""Folders of tests of what is around the generated code."""
EACH = 50
"""One in so many of --seeds is a test of its own, as `fuzz_seed`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true",
                     help="write what the tests found into tests/golden")
    parser.addoption("--seeds", type=int, default=SAMPLE, metavar="N",
                     help="random graphs that go through the passes; a tenth of them are built")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seeds = metafunc.config.getoption("--seeds")
    if "fuzz_seed" in metafunc.fixturenames:
        metafunc.parametrize("fuzz_seed", range(max(min(SAMPLE, seeds), seeds // EACH)))
    for name, (share, least, size) in DRAWN.items():
        if name in metafunc.fixturenames:
            parts = list(_parts(max(least, seeds // share), size))
            metafunc.parametrize(name, parts, ids=[f"{p.start}-{p.stop - 1}" for p in parts])


def _parts(count: int, size: int) -> Iterator[range]:
    """0 to `count` in ranges of `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in summary(terminalreporter.stats, terminalreporter.config.getoption("--seeds")):
        terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A rule that fires too rarely in a full run is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    seeds = session.config.getoption("--seeds")
    if reporter is not None and failed_counts(reporter.stats, seeds):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def quick_builds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests of callers build is compiled quickly. Fixtures of a session say so themselves."""
    if request.path.parent.name in QUICK:
        monkeypatch.setenv("CXX", quick_compiler())


@pytest.fixture(scope="session")
def class_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the C++ behind torch.classes is compiled, once for all workers of a session."""
    from graphdsl.runtime.torch_class import class_library

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "torch-class"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        class_library(folder, os.environ)
    return folder


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which ATB's emulation is: builds that are given it compile only their own
    sources. Workers of one session share it."""
    from graphdsl.backends.ascend.emulation_build import build_emulation

    folder = tmp_path_factory.getbasetemp().parent / "ascend-cache"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_emulation(folder, quick_environment())
    return folder


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text is that of tests/golden/NAME."""
    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        assert path.exists(), f"no {path}; pytest --update-golden writes it"
        assert text + "\n" == path.read_text()

    return check
