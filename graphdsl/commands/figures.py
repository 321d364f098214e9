"""What is written beside the figures of a benchmark, and where to."""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from graphdsl.backend import Backend
from graphdsl.commands.session import Session, check_folder
from graphdsl.commands.trial import Trial
from graphdsl.errors import GraphError
from graphdsl.lazy import torch


def check_file(option: str, path: Path) -> None:
    """Raises GraphError where no file can be written to `path`."""
    if path.is_dir():
        raise GraphError(f"{option} {path}: this is a folder", hint="give a file")
    check_folder(option, path.absolute().parent)
    if not path.absolute().parent.is_dir():
        raise GraphError(f"{option} {path}: there is no folder {path.parent}")
    if path.exists() and not os.access(path, os.W_OK):
        raise GraphError(f"{option} {path}: cannot be written to", hint="give another file")


def case_facts(trial: Trial, args: argparse.Namespace) -> dict[str, Any]:
    config: Any = trial.source.config
    if is_dataclass(config):
        config = {f.name: getattr(config, f.name) for f in fields(config)}
    return {"file": trial.source.path.name, "name": trial.source.name,
            "config": config if isinstance(config, dict) else str(config),
            "backend": args.backend, "dtype": trial.options.dtype, "batch": args.batch,
            "tokens": args.tokens, "past": args.past}


def machine_facts(backend: Backend, session: Session) -> dict[str, Any]:
    """What the figures depend on."""
    capability = backend.probe(session.environment)
    models = [line.partition(":")[2].strip()
              for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "features": list(capability.features),
            "checks": {check.name: check.detail for check in capability.checks},
            "system": platform.platform(), "python": platform.python_version(),
            "torch": str(torch.__version__)}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
