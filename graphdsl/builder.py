"""trace -> passes -> plan -> render -> compile, with a cache by content.

A cache entry is a folder named by the hash of everything that the library depends on.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graphdsl.backend import Backend, Progress, find_backend, quiet
from graphdsl.errors import GraphError
from graphdsl.ir import Graph
from graphdsl.manifest import Identity, manifest_of, manifest_text, quantised_sources
from graphdsl.passes.pipeline import Lowered, configured, passes_for, run_pipeline
from graphdsl.passes.precision import CheckDtypes, live_kernels
from graphdsl.passes.quantise import Quantise
from graphdsl.plan import Plan
from graphdsl.staging import publish, staging, sweep

LIBRARY, MANIFEST, CHECKSUM = "library.so", "manifest.json", "library.sha256"


@dataclass(frozen=True)
class BuildOptions:
    """How to build. `environment` holds CXX and PATH; `cache` is a folder that is made at need."""

    cache: Path
    backend: str = "cpu"
    soc: str = ""
    dtype: str = "f32"
    passes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    out: Path | None = None
    emit_only: bool = False
    verify: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    progress: Progress = quiet


@dataclass(frozen=True)
class Built:
    """Where a build is, and what it took."""

    name: str
    path: Path
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Rendered:
    """Everything that a build writes but the library itself."""

    name: str
    files: Mapping[str, str]
    key: str


def lower(graph: Graph, options: BuildOptions, backend: Backend | None = None) -> Lowered:
    """The graph after all passes, checked against what the backend can run."""
    backend = backend or find_backend(options.backend, options.soc)
    check_dtype(options.dtype, backend)
    check_kernels(graph, backend)
    lowered = run_pipeline(graph, backend.target, options.passes, options.verify)
    check_supported(lowered.graph, backend)
    return lowered


def check_options(options: BuildOptions) -> Backend:
    """The backend. Raises GraphError for one, a SoC, a dtype or an option of a pass that is not
    there."""
    backend = find_backend(options.backend, options.soc)
    check_dtype(options.dtype, backend)
    configured(passes_for(backend.target), options.passes, backend.target)
    return backend


def check_dtype(dtype: str, backend: Backend) -> None:
    """Raises GraphError, with the reason, for a dtype that layers are not built for."""
    target = backend.target
    if dtype in target.layer_dtypes:
        return
    for refused, reason in target.why_not:
        if refused == dtype:
            raise GraphError(f"the {target.name} backend builds no layers of {dtype}: {reason}",
                             hint=f"--dtype {target.layer_dtype}")
    raise GraphError(f"the {target.name} backend has no dtype {dtype}",
                     hint=f"dtypes: {', '.join(sorted(target.layer_dtypes))}")


def check_kernels(graph: Graph, backend: Backend) -> None:
    """Refuses a dtype or a kernel that the backend has no code for, at the user's line, before any
    pass."""
    CheckDtypes().run(graph, backend.target)
    for node, loc in live_kernels(graph, backend.target.takes):
        reason = backend.supports(node)
        if reason:
            raise GraphError(reason, loc)


def check_supported(graph: Graph, backend: Backend) -> None:
    """Refuses a node that the backend cannot run, before any source exists."""
    for node in graph.nodes:
        if node.name == "repeat" and node.body is not None:
            check_supported(node.body, backend)
            continue
        reason = backend.supports(node)
        if reason:
            raise GraphError(reason, node.loc)


def render(graph: Graph, lowered: Lowered, options: BuildOptions,
           backend: Backend) -> tuple[Plan, Rendered]:
    """Sources and manifest, and the key under which they are cached."""
    plan = backend.plan(lowered)
    identity = Identity(options.backend, options.dtype, backend.features)
    facts = backend.facts(options.environment)
    manifest = manifest_text(manifest_of(plan, graph, identity) | facts)
    files = {MANIFEST: manifest, **backend.render(plan, manifest)}
    digest = hashlib.sha256()
    for path, text in sorted(files.items()):
        digest.update(f"{path}\0{text}\0".encode())
    if not options.emit_only:
        digest.update(backend.fingerprint(options.environment).encode())
    return plan, Rendered(graph.name, files, digest.hexdigest()[:32])


def build_graph(graph: Graph, options: BuildOptions, backend: Backend | None = None) -> Built:
    """Builds a traced graph.

    Raises GraphError for what the user can change, ToolError when the compiler fails, OSError when
    a folder cannot be written; nothing half written is left behind.
    """
    start = time.perf_counter()
    backend = backend or find_backend(options.backend, options.soc)
    _check_out(options.out)
    lowered = lower(graph, options, backend)
    fired = sum(len(report.fired) for report in lowered.report)
    options.progress("passes", f"{len(graph.nodes)} nodes -> {len(lowered.graph.nodes)}, "
                               f"{fired} rewrites")
    plan, rendered = render(graph, lowered, options, backend)
    if any(p.type.quant for p in graph.params):
        options.progress("quantise", _quantise_summary(graph, plan, lowered))
    for stage, text in backend.summary(plan):
        options.progress(stage, text)
    if options.emit_only:
        target = options.out or options.cache / "sources" / rendered.key
        with staging(target.parent) as staged:
            _write(staged, rendered.files)
            publish(staged, target)
        return Built(graph.name, target, time.perf_counter() - start, False)
    entry, cached = _cached(rendered, options, backend)
    target = entry
    if options.out:
        with staging(options.out.parent) as staged:
            shutil.copytree(entry, staged, dirs_exist_ok=True)
            publish(staged, options.out)
        target = options.out
    return Built(graph.name, target, time.perf_counter() - start, cached)


def _quantise_summary(graph: Graph, plan: Plan, lowered: Lowered) -> str:
    """How many of the weights that are asked to be quantised are, how, and why others are not."""
    asked = sum(p.type.quant is not None for p in graph.params)
    formats = sorted({str(p.value.type.quant) for p in plan.ports if p.value.type.quant})
    reasons = [f"; {m.reason}" for report in lowered.report if report.name == Quantise.name
               for m in report.missed]
    return (f"{len(quantised_sources(plan))} of {asked} weights: {', '.join(formats) or 'none'}"
            f"{''.join(reasons)}")


def _check_out(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise GraphError(f"--out {out}: this is a file", hint="give a folder, new or existing")


def _cached(rendered: Rendered, options: BuildOptions, backend: Backend) -> tuple[Path, bool]:
    """The cache entry of these sources, compiled if it is not there or not whole."""
    entry = options.cache / rendered.key
    if entry.exists():
        if is_whole(entry) and _holds(entry, rendered.files):
            options.progress("compile", "found in the cache")
            return entry, True
        options.progress("cache", f"entry {rendered.key} is corrupt and is built again")
    sweep(options.cache)
    with staging(options.cache) as staged:
        _write(staged, rendered.files)
        begin = time.perf_counter()
        backend.compile(staged, staged / LIBRARY, options.environment, options.cache,
                        options.progress)
        (staged / CHECKSUM).write_text(_checksum(staged / LIBRARY) + "\n")
        options.progress("compile", f"{time.perf_counter() - begin:.1f} s")
        publish(staged, entry)
    return entry, False


def _holds(entry: Path, files: Mapping[str, str]) -> bool:
    """Whether the sources and the manifest of an entry are the ones that were rendered."""
    return all((entry / name).is_file() and (entry / name).read_bytes() == text.encode()
               for name, text in files.items())


def is_whole(path: Path) -> bool:
    """Whether a build's library is the one that was built."""
    library, checksum = path / LIBRARY, path / CHECKSUM
    if not (library.is_file() and checksum.is_file() and (path / MANIFEST).is_file()):
        return False
    return checksum.read_text().strip() == _checksum(library)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
