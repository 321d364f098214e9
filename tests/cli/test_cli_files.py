"""Files that are no DSL file, or do something wrong: the user's line, exit code 2, no trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from clicase import SMALL, Cli, Refused

from graphdsl.errors import GraphError
from graphdsl.source import load_source

TWO = SMALL + '''

class Other(Small):
    """Another one."""
'''

BAD_FILES = {
    "syntax": ("x = 1\ndef f(:\n", "layer.py:2: not Python: invalid syntax"),
    "null bytes": ("x = 1\0", "layer.py:1: not Python"),
    "raises": ("import json\n\njson.loads('{')\n", "layer.py:3: the file raised JSONDecodeError"),
    "exits": ("import sys\nsys.exit(4)\n", "layer.py:2: the file raised SystemExit: 4"),
    "no module": ("import nowhere_to_be_found\n",
                  "layer.py:1: the file raised ModuleNotFoundError: No module named 'nowhere"),
    "nothing": ("x = 1\n", "layer.py:1: the file defines no layer"),
    "empty": ("", "layer.py:1: the file defines no layer"),
    "two": (TWO, "the file defines 2 Layers: Small (line 14), Other (line 27)"),
    "imported": ("from graphdsl import Layer, Model\n", "the file defines no layer"),
    "no default": (SMALL.replace("config=Config()", "config"),
                   "layer.py:14: Small cannot be made without config"),
    "init raises": (SMALL.replace("self.w = ", "self.w = 1 // 0 or "),
                    "layer.py:21: Small() raised ZeroDivisionError"),
    "forward raises": (SMALL.replace("silu(linear(x", "silu(linear(x.nope"),
                       "layer.py:24: Small raised AttributeError: 'Value' object has no attribute "
                       "'nope'\n  hint: a Value has a shape, a dtype and operators; ops are"),
    "wrong call": (SMALL.replace("linear(x, self.w)", "linear(x, x)"), "layer.py:24: linear"),
    "wrong size": (SMALL.replace("Param(config.hidden, config.hidden)", "Param(4, 7)"),
                   "layer.py:24: linear: "),
    "wrong weight": (SMALL.replace("Param(config.hidden,", "Param(-1,"), "layer.py:21: Param(-1"),
    "no signature": (SMALL.replace('    signature = "x[batch, tokens, hidden] -> '
                                   'y[batch, tokens, hidden]"\n', ""), "Small has no signature"),
    "promise": (SMALL.replace("-> y[batch, tokens, hidden]", "-> y[batch, hidden]"),
                "y is f32[batch, tokens, 8], the signature promises f32[batch, 8]"),
    "build raises": ("def build():\n    raise KeyError('gone')\n",
                     "layer.py:2: build() raised KeyError: 'gone'"),
    "build returns": ("def build():\n    return 7\n", "layer.py:1: build() returns int"),
    "build needs": ("def build(width):\n    pass\n", "layer.py:1: build() needs width"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name: str, here: Path, refused: Refused) -> None:
    text, wanted = BAD_FILES[name]
    (here / "layer.py").write_text(text)
    for command in ("build", "show", "explain"):
        assert wanted in refused(command, "layer.py")


def test_missing_file(refused: Refused) -> None:
    assert "nowhere.py: no such file" in refused("build", "nowhere.py")


def test_folder(here: Path, refused: Refused) -> None:
    (here / "folder").mkdir()
    assert "folder: a folder; wanted: a Python file" in refused("build", "folder")


def test_not_text(here: Path, refused: Refused) -> None:
    (here / "layer.py").write_bytes(bytes(range(128, 256)))
    assert "layer.py:1: not Python" in refused("build", "layer.py")


def test_debug_shows_the_traceback(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text("raise OSError('mine')\n")
    with pytest.raises(GraphError) as caught:
        cli("build", "layer.py", "--debug")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_model_wins_over_its_layers(here: Path) -> None:
    (here / "layer.py").write_text(SMALL + '''

from graphdsl import Model


class Twice(Model):
    signature = Small.signature
    config = Config()

    def __init__(self):
        self.layers = [Small(), Small()]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
''')
    assert load_source(here / "layer.py").name == "Twice"


def test_neighbours_are_found_and_forgotten(here: Path) -> None:
    (here / "sizes_of_mine.py").write_text("HIDDEN = 24\n")
    (here / "torch.py").write_text(
        "from sizes_of_mine import HIDDEN\n" + SMALL.replace("hidden: int = 8",
                                                             "hidden: int = HIDDEN")
        + "\n\ndef peer(config):\n    import sizes_of_mine\n    return sizes_of_mine.HIDDEN\n")
    modules, path = set(sys.modules), list(sys.path)
    source = load_source(here / "torch.py")
    assert source.config.hidden == 24
    assert sys.path == path
    assert not {"sizes_of_mine"} & set(sys.modules)
    assert {m for m in set(sys.modules) - modules if not m.startswith("graphdsl.")} == set()
    with source.importing():
        assert source.peer() == 24
    assert "sizes_of_mine" not in sys.modules
    (here / "sizes_of_mine.py").write_text("HIDDEN = 40\n")
    assert load_source(here / "torch.py").config.hidden == 40
    assert not list(here.rglob("__pycache__"))


def test_settings_reach_the_config(here: Path) -> None:
    (here / "layer.py").write_text(SMALL)
    source = load_source(here / "layer.py", {"hidden": "16", "scale": "0.5", "gate": "false"},
                         "bf16")
    assert (source.config.hidden, source.config.scale, source.config.gate) == (16, 0.5, False)
    assert source.dtype == "bf16"
    assert source.graph.params[0].shape == (16, 16)


@pytest.mark.parametrize(("setting", "wanted"), [
    ("heads=3", "the config has no field heads\n  hint: fields: hidden, scale, gate"),
    ("hidden=wide", "'wide' is not int"),
    ("gate=maybe", "'maybe' is not bool"),
    ("hidden=-1", "sizes of a weight are whole numbers above 0"),
    ("hidden", "'hidden' is not key=value"),
])
def test_bad_settings(setting: str, wanted: str, here: Path, refused: Refused) -> None:
    (here / "layer.py").write_text(SMALL)
    assert wanted in refused("build", "layer.py", "--set", setting)


BUILD = SMALL + '''

from graphdsl import trace


def build(width: int = 8, dtype="f32"):
    return trace(Small(Config(width)), dtype)
'''


def test_build_function(here: Path) -> None:
    (here / "layer.py").write_text(BUILD)
    source = load_source(here / "layer.py", {"width": "12"}, "bf16")
    assert (source.layer, source.config.width, source.dtype) == (None, 12, "bf16")
    assert source.graph.inputs[0].shape[2] == 12


def test_build_function_that_has_its_own_dtype(here: Path, refused: Refused) -> None:
    (here / "layer.py").write_text(BUILD.replace(', dtype="f32"', "").replace(", dtype)", ")"))
    assert "build() returns a graph of f32, wanted bf16" in refused(
        "build", "layer.py", "--dtype", "bf16")
    assert "build() has no parameter depth" in refused("build", "layer.py", "--set", "depth=2")


def test_peer_that_is_missing(here: Path, refused: Refused) -> None:
    (here / "layer.py").write_text(SMALL)
    with pytest.raises(GraphError, match=r"layer.py:1: layer.py defines no peer\(config\)"):
        load_source(here / "layer.py").peer()
