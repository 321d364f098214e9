"""One thread: the tensors of these tests are small. And no compiler: passes need none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder, where alone programs are looked for."""
    empty = tmp_path_factory.mktemp("path")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(empty))
        patch.delenv("CXX", raising=False)
        yield empty
