"""Equal calls share a function, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graphdsl.backends.cpu.backend import CPU
from graphdsl.backends.cpu.sharing import Site, shared
from graphdsl.builder import BuildOptions, lower, render
from graphdsl.layer import trace
from graphdsl.models.llama import Config, Llama

SMALL = Config(vocab=29, hidden=16, layers=3, heads=4, kv_heads=2, head_dim=4, ffn=24)
FLOATS = {"p0": "float", "p1": "float", "p2": "float", "b0": "float", "b1": "char"}


def site(text: str, op: str = "loop", ctypes: dict[str, str] = FLOATS) -> Site:
    return Site("", False, op, text, ctypes)


def test_calls_that_differ_in_pointers_share() -> None:
    functions, (calls,) = shared([[site("f(p0, b0, p0 + 4);"), site("f(p2, p1, p2 + 4);")]])
    (function,) = functions
    assert function.parameters == ("float* const q0", "float* const q1")
    assert function.text == "f(q0, q1, q0 + 4);"
    assert [c.text for c in calls] == ["  loop0(team, p0, b0, d);\n", "  loop0(team, p2, p1, d);\n"]


def test_what_does_not_share() -> None:
    """Other numbers, other types, other pointers that are equal, and repeats."""
    for a, b in (("f(p0 + 4);", "f(p1 + 8);"), ("f(b0);", "f(b1);"), ("f(p0, p0);", "f(p0, p1);")):
        bodies = [[site(a)], [site(b)]]
        assert shared(bodies) == ((), bodies)
    twice = [[site("t(p0);", "repeat"), site("t(p0);", "repeat")]]
    assert shared(twice) == ((), twice)


def generated(config: Config, tmp_path: Path) -> str:
    """The C++ of a Llama whose layers are not rolled."""
    options = BuildOptions(cache=tmp_path, passes={"roll": {"min_turns": "1000"}})
    graph = trace(Llama(config))
    _, rendered = render(graph, lower(graph, options), options, CPU())
    return next(text for path, text in rendered.files.items() if path.endswith(".cpp"))


def test_unrolled_layers_share_their_code(tmp_path: Path) -> None:
    """A further layer adds calls and no functions; the last differs, for the final norm reads it
    through other rows."""
    few, many = (generated(replace(SMALL, layers=n), tmp_path) for n in (4, 9))
    assert few.count("v_exp(") == many.count("v_exp(")
    assert few.count("matmul(team") == many.count("matmul(team")
