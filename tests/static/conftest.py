"""One thread: the tensors of these tests are small."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from graphdsl.builder import BuildOptions


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    return BuildOptions(cache=tmp_path_factory.mktemp("cache"), environment=dict(os.environ))
