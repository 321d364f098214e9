"""Whole processes: what they import, how they race, and what is left when they are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clicase import SMALL, start, tree

import graphdsl
from graphdsl.builder import is_whole


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(SMALL)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_build_does_not_import_torch(own_cache: Path) -> None:
    code = ("import sys; from graphdsl.cli import main\n"
            "heavy = ('torch', 'numpy', 'transformers', 'networkx')\n"
            "for _ in range(2): main(['build', 'layer.py', '--out', 'out'])\n"
            "print([m for m in heavy if m in sys.modules])")
    assert python(code).endswith("\n[]\n")


def test_import_is_cheap(here: Path) -> None:
    code = "import sys, graphdsl; print([m for m in sys.modules if m.startswith('graphdsl.')])"
    assert python(code) == "[]\n"


def entries(cache: Path) -> list[Path]:
    return [p for p in cache.iterdir() if not p.name.startswith(".")] if cache.exists() else []


def test_two_builds_at_once(here: Path, own_cache: Path) -> None:
    racers = [start("build", "layer.py", "--out", "same") for _ in range(3)]
    for racer in racers:
        _, err = racer.communicate()
        assert (racer.returncode, err) == (0, "")
    assert graphdsl.load(here / "same").name == "Small"
    assert [is_whole(entry) for entry in entries(own_cache)] == [True]
    assert not [p for p in tree(own_cache, here) if ".building-" in p]


def test_killed_builds_leave_no_broken_entry(own_cache: Path) -> None:
    draw = random.Random(5)
    begin = time.perf_counter()
    assert start("build", "layer.py").communicate()[1] == ""
    whole = time.perf_counter() - begin
    for entry in entries(own_cache):
        (entry / "library.so").unlink()
    for _ in range(6):
        process = start("build", "layer.py", group=True)
        time.sleep(draw.uniform(0, 1.1) * whole)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start("build", "layer.py")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert graphdsl.load(out.strip().rpartition(": ")[2]).name == "Small"
    assert [is_whole(entry) for entry in entries(own_cache)] == [True]


def test_interrupted(own_cache: Path, here: Path) -> None:
    slow = here / "slow"
    slow.write_text('#!/bin/sh\ncase "$*" in *--version*) echo slow; exit 0;; esac\nsleep 20\n')
    slow.chmod(0o755)
    process = start("build", "layer.py", env={"CXX": str(slow)}, group=True)
    assert process.stdout
    while not process.stdout.readline().startswith("render"):
        pass
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert entries(own_cache) == []
    assert not [p for p in tree(own_cache) if ".building-" in p]


def test_reader_that_leaves(own_cache: Path) -> None:
    process = start("show", "layer.py", "--all")
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait() == 0


def test_a_second_build_compiles_nothing(own_cache: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "llama_layer.py"
    printed = []
    for _ in range(2):
        with start("build", example) as process:
            printed.append(process.communicate()[0])
        assert process.returncode == 0
    assert "found in the cache" not in printed[0]
    assert "found in the cache" in printed[1]
