"""The packages of the extra `hf`, imported on first use: only real models need them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from graphdsl.errors import GraphError


def need(module: str) -> Any:
    """The module of this name, which a package of the extra `hf` brings.

    Raises GraphError when that package is not installed. The result is untyped on purpose: these
    packages are checked by tests, and following their annotations costs a type checker minutes.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(error.name or module) from error


def version_of(package: str) -> str:
    """The version of an installed package, which is not imported for it. Raises as `need` does."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise _missing(package) from error


def _missing(module: str) -> GraphError:
    return GraphError(
        f"the package {module.split('.')[0]!r} is needed to read this model and is missing",
        hint="pip install 'graphdsl[hf]'",
    )


@contextmanager
def tokenizer_errors(path: Path, what: str) -> Iterator[None]:
    """Turns the failures of transformers and tokenizers inside into a GraphError: path, what, why.

    tokenizers, being Rust, raises the bare class Exception for whatever goes wrong in it: that and
    no subclass of it is taken for such a failure.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise GraphError(f"{path}: {what}: {error}") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise GraphError(f"{path}: {what}: {error}") from error
