"""What a machine can do is measured once, and again where what was kept is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from graphdsl.backends.cpu import machine
from graphdsl.backends.cpu.backend import CPU
from graphdsl.roofline import Limits, Machine, Measured


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread counts that were measured; the loops themselves are not run."""
    done: list[int] = []

    def measured(cpu: CPU, threads: int, *rest: object) -> Limits:
        done.append(threads)
        return Limits(1e9 * len(done), 2e9, 2e9, 2e9)

    monkeypatch.setattr(machine, "_measured", measured)
    return done


def find(cache: Path, threads: int = 1, *, fresh: bool = False) -> Machine:
    return CPU().machine(threads, dict(os.environ), cache, fresh=fresh)


def test_measured_once_for_every_thread_count(measurements: list[int], tmp_path: Path) -> None:
    first = find(tmp_path)
    assert find(tmp_path) == first
    assert find(tmp_path, threads=2).threads == 2
    assert measurements == [1, 2]
    assert find(tmp_path, fresh=True) != first
    assert measurements == [1, 2, 1]


@pytest.mark.parametrize("damage", ["", "[]", "{}", "not json", "\x00", "read", "limits"])
def test_damaged_file_is_measured_again(damage: str, measurements: list[int],
                                        tmp_path: Path) -> None:
    find(tmp_path)
    path = next((tmp_path / "machines").glob("*.json"))
    known = json.loads(path.read_text())
    if damage == "read":
        known["limits"]["read"] = 0
    elif damage:
        known.pop("limits")
    path.write_text(json.dumps(known) if damage in ("read", "limits") else damage)
    assert find(tmp_path).limits.read == 2e9
    assert len(measurements) == 2
    assert find(tmp_path).limits.read == 2e9
    assert [p.name for p in (tmp_path / "machines").iterdir()] == [path.name]


def test_caches_as_linux_lists_them(tmp_path: Path) -> None:
    """Two last-level caches, each shared by two CPUs; the smaller levels do not count."""
    for cpu in range(4):
        for index, (level, size) in enumerate((("1", "32K"), ("3", "16M"))):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            shared = str(cpu) if level == "1" else ("0-1", "2-3")[cpu // 2]
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(text + "\n")
    assert machine.cache_bytes(tmp_path) == 32 << 20
    assert machine.cache_bytes(tmp_path / "nothing") == machine.UNKNOWN_CACHE


def test_limits() -> None:
    """The larger of two rulers; a bf16 can be multiplied as f32; the longer of two times binds."""
    limits = Limits(10.0, 100.0, 0.0, 50.0).with_larger(Limits(20.0, 80.0, 0.0, 0.0))
    assert limits == Limits(20.0, 100.0, 100.0, 100.0)
    assert limits.bound(40, 100, "bf16") == (2.0, "memory")
    assert limits.bound(40, 300, "bf16") == (3.0, "bf16")


def test_the_cpu_backend_measures() -> None:
    assert isinstance(CPU(), Measured)
