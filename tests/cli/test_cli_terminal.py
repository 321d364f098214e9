"""On a terminal the stage under way is shown, and its summary is written over it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clicase import SMALL


def on_terminal(*argv: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "graphdsl", *argv], stdout=theirs,
                          stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while chunk := os.read(ours, 1 << 16):
                written += chunk
        except OSError:  # how Linux says that the other side has closed
            pass
        assert process.wait() in (0, 2)
    os.close(ours)
    return written.decode().replace("\r\n", "\n")


def shown(written: str) -> list[str]:
    """The lines that stay on the screen."""
    return [re.split(r"\r\x1b\[K", line)[-1] for line in written.strip().split("\n")]


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(SMALL)


def test_stages(own_cache: Path) -> None:
    written = on_terminal("build", "layer.py")
    assert "\r\x1b[Kcompile ...\r\x1b[Kcompile  " in written
    words = [line.split()[0] for line in shown(written)]
    assert words == ["trace", "passes", "render", "memory", "compile", "built"]
    assert not any("..." in line for line in shown(written))


def test_nothing_under_way_stays(own_cache: Path) -> None:
    emitted = shown(on_terminal("build", "layer.py", "--emit-only"))
    assert emitted[-1].startswith("emitted Small")
    refused = shown(on_terminal("build", "layer.py", "--set", "hidden=-1"))
    assert refused[0].startswith("error: layer.py:")
    assert not any("..." in line for line in emitted + refused)


def test_a_page_is_not_for_a_terminal() -> None:
    assert on_terminal("show", "layer.py", "--format", "html").removeprefix("\r\x1b[K") == (
        "error: --format html is a page for a browser, not for a terminal\n"
        "  hint: graphdsl show layer.py --all --format html > page.html\n")
