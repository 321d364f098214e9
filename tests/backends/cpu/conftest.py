"""The marker of the tests that `make sanitize` selects."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sanitize: runs native code under sanitizers")
