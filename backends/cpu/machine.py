"""What this machine can do at most, by loops compiled as the kernels are; measured once."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from graphdsl.lazy import torch
from graphdsl.roofline import Limits, Machine, beyond_cache, rate
from graphdsl.staging import staging

if TYPE_CHECKING:
    from .backend import CPU

HERE = Path(__file__).parent
LOOPS = HERE / "roofline" / "loops.cpp"

SECONDS = 1.0
"""For each loop: long enough that other work on the machine does not fill all of it."""
AGAIN = 0.3
"""The share of these seconds for loops that are run again beside a measurement."""
PIECES = 8
"""Parts of the array that are read in turn: a short sample is less often disturbed."""
STREAMS = (1, 2, 4, 8)
"""In how many places a thread reads at once; the best of them counts."""
UNKNOWN_CACHE = 64 << 20
"""Bytes of last-level cache where the system does not say."""


def find_machine(cpu: CPU, threads: int, environment: Mapping[str, str], cache: Path, *,
                 fresh: bool) -> Machine:
    """The machine that `cache` knows, else measured and kept there. Raises ToolError where there
    is no compiler."""
    compiler, name = cpu.fingerprint(environment), cpu_name()
    source = LOOPS.read_text()
    key = hashlib.sha256("\0".join([name, str(threads), compiler, source]).encode()).hexdigest()
    path = cache / "machines" / f"{key[:32]}.json"
    known = None if fresh else _known(path)
    if known is not None:
        return known
    limits = _measured(cpu, threads, environment, path.parent, SECONDS)
    machine = Machine(name, cpu.chosen.name, threads, compiler.partition("\n")[0], cache_bytes(),
                      limits)
    with staging(path.parent) as staged:
        (staged / path.name).write_text(json.dumps(machine.json(), indent=1) + "\n")
        os.replace(staged / path.name, path)
    return machine


def measure_again(cpu: CPU, threads: int, environment: Mapping[str, str], cache: Path) -> Limits:
    """What the loops reach now, in less time. Raises ToolError where there is no compiler."""
    return _measured(cpu, threads, environment, cache / "machines", AGAIN * SECONDS)


def _known(path: Path) -> Machine | None:
    """A machine that was measured; None where there is none or the file is damaged."""
    try:
        return Machine.read(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the CPU is called."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """The size of all last-level caches together, as Linux lists them."""
    found = list(_caches(root))
    last = max((level for level, _, _ in found), default=0)
    sizes = {shared: size for level, shared, size in found if level == last}
    return sum(sizes.values()) or UNKNOWN_CACHE


def _caches(root: Path) -> Iterator[tuple[int, str, int]]:
    """The level of a cache, the CPUs that share it, and its bytes; once for every CPU."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for index in root.glob("cpu[0-9]*/cache/index*"):
        try:
            level, shared, size = ((index / name).read_text().strip()
                                   for name in ("level", "shared_cpu_list", "size"))
        except OSError:  # a virtual machine may leave some of them out
            continue
        number = size.rstrip("KMG")
        if level.isdecimal() and number.isdecimal():
            yield int(level), shared, int(number) * units.get(size[len(number):], 1)


def _measured(cpu: CPU, threads: int, environment: Mapping[str, str], folder: Path,
              seconds: float) -> Limits:
    with staging(folder) as staged:
        kernels = staged / "src" / "kernels"
        kernels.mkdir(parents=True)
        for header in (HERE / "kernels").glob("*.hpp"):
            (kernels / header.name).write_text(header.read_text())
        (staged / "src" / LOOPS.name).write_text(LOOPS.read_text())
        cpu.compile(staged, staged / "loops.so", environment, folder)
        torch.get_num_threads()  # torch brings the OpenMP runtime that the library is to use
        return _limits(ctypes.CDLL(str(staged / "loops.so")), threads, seconds)


def _limits(loops: ctypes.CDLL, threads: int, seconds: float) -> Limits:
    array = torch.ones(beyond_cache(cache_bytes()) // 4)

    def reading(streams: int) -> Callable[[int], float]:
        read, piece = loops.gdsl_read, ctypes.c_int64(array.numel() // PIECES)
        read.restype = ctypes.c_double
        places = cycle(array.data_ptr() + i * piece.value * 4 for i in range(PIECES))
        return lambda turns: sum(
            float(read(ctypes.c_void_p(address), piece, streams, threads))
            for address in islice(places, turns))

    def computing(name: str) -> Callable[[int], float]:
        compute = getattr(loops, name)
        compute.restype = ctypes.c_double
        return lambda turns: float(compute(ctypes.c_int64(turns * 1000), threads))

    read = max(rate(reading(streams), seconds / len(STREAMS)) for streams in STREAMS)
    f32, bf16, int8 = (rate(computing(name), seconds)
                       for name in ("gdsl_f32", "gdsl_bf16", "gdsl_int8"))
    measured = Limits(read, f32, bf16, int8)
    return measured.with_larger(measured)


__all__ = ["cache_bytes", "cpu_name", "find_machine", "measure_again"]
