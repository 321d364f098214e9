"""What README shows is true: its example builds, its Python runs, its error is the one printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clicase import Cli

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def layer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "my_layer.py").write_text(BLOCKS[0])
    monkeypatch.syspath_prepend(str(here))


def test_commands(cli: Cli) -> None:
    for command in ("build", "explain", "run"):
        assert f"graphdsl {command} my_layer.py" in README
        assert cli(command, "my_layer.py").code == 0
    assert "nearly once" not in cli("explain", "my_layer.py", "--rule", "SiluMul").out


def test_python(cli: Cli) -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    assert list(names["y"].shape) == [1, 7, 1024]  # type: ignore[attr-defined]


def test_error(here: Path, cli: Cli) -> None:
    (here / "my_layer.py").write_text(BLOCKS[0].replace("Param(config.ffn, config.hidden)\n"
                                                        "        self.w_up", "Param(4, 7)\n"
                                                        "        self.w_up"))
    message = cli("build", "my_layer.py").err
    assert message.strip() in README, message
