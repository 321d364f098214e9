"""graphdsl show --format dot, svg and html, as text; test_cli_show_page.py opens the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from clicase import SMALL, Cli

from graphdsl.passes.pipeline import PIPELINE

NASTY = "# </script><script>alert(1)</script> \"quoted\" & {{ 7 * 6 }} {% raw %} \u2028 é"
"""What a line of the user's may hold."""


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(SMALL)


def test_dot(cli: Cli) -> None:
    drawing = cli("show", "layer.py", "--format", "dot").out
    assert drawing.startswith('digraph "Small" {')
    assert drawing.rstrip().endswith("}")


def test_svg_needs_no_graphviz(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = cli("show", "layer.py", "--format", "svg", "--after", "loops")
    assert result.code == 0
    root = ElementTree.fromstring(result.out)
    texts = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"x", "result 0", "matmul_nt w"} <= set(texts)
    assert any(text.startswith("matmul_epilogue") for text in texts)
    assert any("f32[batch, tokens, 8] :24" in text for text in texts)


def test_svg_of_every_stage(cli: Cli) -> None:
    out = cli("show", "layer.py", "--format", "svg", "--all").out
    headings = re.findall(r"^<!-- (.*) -->$", out, re.MULTILINE)
    assert headings[0] == "trace"
    assert "roll: no change" in headings
    drawings = re.findall(r"<svg.*?</svg>", out, re.DOTALL)
    assert len(drawings) == sum(": no change" not in heading for heading in headings)
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_svg_of_a_graph_without_nodes(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text(SMALL.replace(
        "return silu(linear(x, self.w)) * self.config.scale + x", "return x"))
    ElementTree.fromstring(cli("show", "layer.py", "--format", "svg").out)
    assert "<!doctype html>" in cli("show", "layer.py", "--format", "html", "--all").out


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "examples").glob("*.py")),
                         ids=lambda file: file.stem)
def test_every_example(file: Path, cli: Cli) -> None:
    ElementTree.fromstring(cli("show", file, "--after", PIPELINE[-1].name, "--format", "svg").out)
    page = data_of(cli("show", file, "--all", "--format", "html").out)
    assert page["codeNote"] == ""
    assert any(row.get("code") for stage in page["stages"] for row in stage["rows"])


def test_page_is_one_file_and_the_same_every_time(cli: Cli) -> None:
    page = cli("show", "layer.py", "--format", "html", "--all").out
    assert page.lstrip().startswith("<!doctype html>")
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"(?:src|href)=|url\((?!#)|@import", page)
    assert str(Path.cwd()) not in page
    assert page == cli("show", "layer.py", "--format", "html", "--all").out


def test_page_names_what_changed_nothing(cli: Cli) -> None:
    page = cli("show", "layer.py", "--format", "html", "--all").out
    assert "<h2>loops" in page
    assert "<h2>roll: no change</h2>" in page
    assert "fired</b> MatmulEpilogue at layer.py:24" in page


def test_page_of_one_stage(cli: Cli) -> None:
    page = cli("show", "layer.py", "--format", "html", "--after", "expand").out
    assert page.count('<section class="stage"') == 1
    assert "matmul_nt" in page
    assert data_of(page)["codeNote"].startswith("generated code: ")


def test_page_escapes_what_the_user_wrote(here: Path, cli: Cli) -> None:
    name = "a & <b>.py"
    (here / name).write_text(SMALL.replace("scale + x", f"scale + x  {NASTY}"))
    page = cli("show", name, "--format", "html", "--all").out
    assert "<b>.py" not in page
    assert "a &amp; &lt;b&gt;.py" in page
    assert "<script>alert" not in page
    assert page.count("</script>") == page.count("<script")
    sources = {row.get("source", "") for stage in data_of(page)["stages"] for row in stage["rows"]}
    assert any(source.endswith(NASTY) for source in sources)


def test_page_says_why_there_is_no_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphdsl.backends.cpu.backend.CPU.supports",
                        lambda *_: "the cpu backend has no code for silu")
    page = cli("show", "layer.py", "--format", "html", "--all").out
    note = data_of(page)["codeNote"]
    assert note.startswith("no generated code: layer.py:24: the cpu backend has no code for silu")


def data_of(page: str) -> dict[str, Any]:
    """What the page's scripts read."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data
