"""What docs/borders.md shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "borders.md"


@pytest.mark.full
def test_the_examples(emulation: Path, class_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(class_cache))
    monkeypatch.delenv("ATB_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    names: dict[str, object] = {}
    blocks = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block.replace('Path("build")', f"Path({str(emulation)!r})"), names)
