"""Which vector instructions this CPU has, and the compiler's flags for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
          "-mprefer-vector-width=512")


@dataclass(frozen=True)
class Level:
    """A set of vector instructions: the floats of one vector, what the CPU must list, and the
    compiler's flags."""

    name: str
    lanes: int
    features: tuple[str, ...]
    flags: tuple[str, ...]


LEVELS = (
    Level("avx512bf16", 16, ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16",
                             "avx512_vnni"), (*AVX512, "-mavx512bf16", "-mavx512vnni")),
    Level("avx512", 16, ("avx512f", "avx512bw", "avx512dq", "avx512vl"), AVX512),
    Level("avx2", 8, ("avx2", "fma", "f16c"), AVX2),
    Level("plain", 4, (), ()),
)
"""Best first."""


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags that Linux lists for this CPU; empty on other systems."""
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def best_level(features: frozenset[str]) -> Level:
    return next(level for level in LEVELS if features.issuperset(level.features))
