"""Folders that are made beside their place and put there whole, so that nothing half made is seen.

A build that is killed leaves none behind, and two that run at once both end with a right one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STAGING, ABANDONED_SECONDS = ".building-", 24 * 3600


def sweep(folder: Path) -> None:
    """Removes what builds that were killed have left; one that runs is never that old."""
    for left in folder.glob(f"{STAGING}*"):
        with suppress(FileNotFoundError):  # another build may be sweeping too
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A folder beside the target; whatever is left in it at the end is removed."""
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=STAGING, dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # it holds what another build made, or that one removed it
                path.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, target: Path) -> None:
    """Puts a finished folder in its place: by one rename where the place is free."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(staged, target)
    except OSError:
        if not target.is_dir():
            raise
        for path in sorted(p for p in staged.rglob("*") if p.is_file()):
            place = target / path.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


__all__ = ["publish", "staging", "sweep"]
