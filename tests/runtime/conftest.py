"""One build of every small layer for a whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runtime_layers import PAGED, Block, Pair, Words, built, opened

from graphdsl.runtime.operator import Operator


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def block_path(cache: Path) -> Path:
    return built(Block(), cache)


@pytest.fixture(scope="session")
def pair_path(cache: Path) -> Path:
    return built(Pair(), cache)


@pytest.fixture
def block(block_path: Path) -> Operator:
    return opened(block_path)


@pytest.fixture
def pair(pair_path: Path) -> Operator:
    return opened(pair_path)


@pytest.fixture(scope="session")
def words_path(cache: Path) -> Path:
    return built(Words(), cache)


@pytest.fixture
def words(words_path: Path) -> Operator:
    return opened(words_path)


@pytest.fixture(scope="session")
def paged_path(cache: Path) -> Path:
    return built(Block(), cache, layout=PAGED)


@pytest.fixture
def paged(paged_path: Path) -> Operator:
    return opened(paged_path)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's thread count back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
