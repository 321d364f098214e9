"""A wheel made from the sources works without them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from clicase import PEER, SMALL
from quick import quick_environment

ROOT = Path(__file__).parents[2]
SOURCES = ("graphdsl", "backends", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def succeed(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, which has nothing that was built before."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    succeed(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
            "--wheel-dir", folder / "dist", folder / "source", env=quick_environment())
    return next((folder / "dist").glob("graphdsl-*.whl"))


def test_wheel_holds_what_is_read_at_run_time(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, pattern in (("kernels", "*.hpp"), ("templates", "*.j2"),
                            ("roofline", "*.cpp")):
        for path in (ROOT / "backends" / "cpu" / folder).glob(pattern):
            assert f"graphdsl/backends/cpu/{folder}/{path.name}" in names
    for pattern in ("templates/*.j2", "runner/*", "emulation/**/*.h", "emulation/**/*.?pp"):
        for path in (ROOT / "backends" / "ascend").glob(pattern):
            assert f"graphdsl/{path.relative_to(ROOT)}" in names
    for path in (p for top in ("graphdsl", "backends") for p in (ROOT / top).rglob("*.py")):
        place = path.relative_to(ROOT)
        assert str(place if place.parts[0] == "graphdsl" else "graphdsl" / place) in names
    for path in (ROOT / "graphdsl" / "seeing" / "templates").iterdir():
        assert f"graphdsl/seeing/templates/{path.name}" in names
    assert "graphdsl/runtime/abi.h" in names
    assert any(name.startswith("graphdsl/runtime/_native.") for name in names)


def test_installed_wheel_builds_and_runs_a_layer(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    succeed(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel)
    (empty / "layer.py").write_text(SMALL + PEER)
    env = dict(os.environ) | {"PYTHONPATH": str(site), "GRAPHDSL_CACHE": str(tmp_path / "cache")}
    where = ("import graphdsl, graphdsl.backends.cpu.backend as cpu; "
             "print(graphdsl.__file__, cpu.__file__)")
    for path in succeed(sys.executable, "-c", where, cwd=empty, env=env).split():
        assert Path(path).is_relative_to(site)
    graphdsl = (sys.executable, "-m", "graphdsl")
    succeed(*graphdsl, "build", "layer.py", "--out", "built", cwd=empty, env=env)
    last = succeed(*graphdsl, "run", "layer.py", "--tokens", "3", cwd=empty, env=env).splitlines()
    assert re.match(r"max relative error \S+ \(tolerance 2e-05\), 0 of 24 ", last[-1])
