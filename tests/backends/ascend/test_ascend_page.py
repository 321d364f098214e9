"""What docs/ascend.md shows is what there is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "ascend.md"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_example_of_a_layer(emulation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second is torch's class, whose own tests compile it.
    code, _ = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.setenv("GRAPHDSL_CACHE", str(emulation))
    monkeypatch.delenv("ATB_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    exec(compile(code, str(PAGE), "exec"), {})
