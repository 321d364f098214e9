"""The page of `graphdsl show --all --format html`, in a headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_chromium
from clicase import SMALL, Cli

from graphdsl.passes.pipeline import PIPELINE

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")

LAST = PIPELINE[-1].name
EXAMPLES = Path(__file__).parents[2] / "examples"

Open = Callable[..., Browser]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = find_chromium()
    assert command
    browser = Browser(command, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(SMALL)


@pytest.fixture
def opened(chromium: Browser, cli: Cli, here: Path) -> Iterator[Open]:
    """`opened(file, **window)`: the page of a DSL file. At the end, no error was logged and
    nothing but the page was asked for."""
    path = here / "page.html"

    def run(file: str, **window: Any) -> Browser:
        path.write_text(cli("show", file, "--all", "--format", "html").out)
        chromium.open(path, **window)
        return chromium

    yield run
    chromium.run("0")
    assert chromium.errors == []
    assert chromium.requests == [path.resolve().as_uri()]


def row(op: str, side: str = "right", number: int = 0) -> str:
    """A script for the lines of an op on one side of the page."""
    return (f"[...document.querySelectorAll('.stage.on-{side} .row')].filter("
            f"(each) => each.querySelector('b')?.textContent === {json.dumps(op)})[{number}]")


def panel(browser: Browser) -> str:
    """What the panel says, or an empty string while it is closed."""
    text: str = browser.run(
        "document.getElementById('panel').hidden ? '' : document.getElementById('panel').innerText")
    return text


def stages(browser: Browser) -> list[str]:
    found: list[str] = browser.run("['left', 'right'].map((id) => { const chosen = "
                                   "document.getElementById(id); "
                                   "return stages[Number(chosen.value)].name; })")
    return found


def choose(browser: Browser, left: str, right: str) -> None:
    """Chooses two stages as a user does, by the two lists."""
    for side, name in (("left", left), ("right", right)):
        browser.run(f"""(() => {{
            const list = document.getElementById("{side}");
            list.value = stages.findIndex((stage) => stage.name === "{name}");
            list.dispatchEvent(new Event("change"));
        }})()""")


def kinds(browser: Browser, side: str) -> dict[str, int]:
    """How many lines of one side have each mark."""
    found: dict[str, int] = browser.run(f"""(() => {{
        const count = {{}};
        for (const each of document.querySelectorAll(".stage.on-{side} .row"))
            for (const kind of ["added", "removed", "changed", "moved"])
                if (each.classList.contains(kind)) count[kind] = (count[kind] ?? 0) + 1;
        return count;
    }})()""")
    return found


def test_opens_with_the_first_change(opened: Open) -> None:
    browser = opened("layer.py")
    left, right = stages(browser)
    assert left == "trace"
    assert right in [each.name for each in PIPELINE]
    shown = browser.run("document.querySelectorAll('.stage.shown').length")
    assert shown == 2
    assert "added" in kinds(browser, "right")
    assert "removed" in kinds(browser, "left")
    unchanged = browser.run("document.querySelector('#strip [data-stage=\"1\"]').innerText")
    assert "no change" in unchanged


def test_click_shows_the_panel(opened: Open) -> None:
    browser = opened("layer.py")
    choose(browser, "trace", LAST)
    assert panel(browser) == ""
    browser.run(f"{row('matmul_epilogue')}.id = 'wanted'; 0")
    browser.click("#wanted")
    text = panel(browser)
    for part in ("matmul_epilogue", "layer.py:24", "return silu(linear(x, self.w))", "linear()",
                 "f32[batch, tokens, 8]", "32*batch*tokens", "%w", "256", "epilogues",
                 "generated code", "matmul(team", "not in trace"):
        assert part in text, part
    assert browser.run("document.querySelector('#wanted').classList.contains('picked')")
    browser.press("Escape")
    assert panel(browser) == ""


def test_an_operation_shows_what_it_stands_for(opened: Open) -> None:
    browser = opened("layer.py")
    browser.run(f"{row('silu', 'left')}.click(); 0")
    assert "sigmoid" in panel(browser)
    assert f"not in {stages(browser)[1]}" in panel(browser)


def test_a_part_of_a_fused_node_leads_to_it(opened: Open) -> None:
    browser = opened("layer.py")
    choose(browser, "cleanup", LAST)
    browser.run(f"{row('matmul_nt')}.click(); 0")
    text = panel(browser)
    assert "of the matmul_epilogue that it is a part of" in text
    assert "moved from" in text
    assert browser.run("document.querySelectorAll('.stage.on-left .row.near').length") == 1
    browser.run("[...document.querySelectorAll('#panel dd button')][0].click(); 0")
    assert panel(browser).startswith("matmul_epilogue")


def test_a_param_that_is_made_at_load(opened: Open) -> None:
    browser = opened(str(EXAMPLES / "llama_layer.py"))
    choose(browser, "trace", LAST)
    browser.run("[...document.querySelectorAll('.stage.on-right .leaves .row')].find((each) => "
                "each.querySelector('.made').textContent === '%concat.0').click(); 0")
    text = panel(browser)
    for part in ("made when weights are loaded", "concat(%wq, %wk, %wv", "fold", "192 MiB"):
        assert part in text, part


def test_keys(opened: Open) -> None:
    browser = opened("layer.py")
    browser.run(f"{row('linear', 'left')}.focus(); 0")
    browser.press("Tab")
    browser.press("Enter")
    assert panel(browser).startswith("silu")
    browser.press("ArrowUp")
    browser.press("Enter")
    assert panel(browser).startswith("linear")
    before = stages(browser)
    browser.press("ArrowRight")
    assert stages(browser) != before
    browser.press("ArrowLeft")
    assert stages(browser) == before


def test_any_two_stages(opened: Open) -> None:
    browser = opened("layer.py")
    choose(browser, LAST, "trace")
    backwards = kinds(browser, "right")
    choose(browser, "trace", LAST)
    assert kinds(browser, "left") == {
        {"added": "removed"}.get(kind, kind): count for kind, count in backwards.items()}
    titles = browser.run("[...document.querySelectorAll('.stage.shown h2')].map(h => h.innerText)")
    assert titles[0] == "trace"
    assert titles[1].startswith(LAST)
    browser.click("#strip [data-stage='1']")
    assert browser.run("document.getElementById('nothing').innerText").startswith("no change")
    assert browser.run("document.querySelectorAll('.stage.shown').length") == 1


def test_changes_only(opened: Open) -> None:
    browser = opened("layer.py")
    choose(browser, "epilogues", LAST)
    browser.click("#only")
    visible = browser.run("[...document.querySelectorAll('.stage.on-right .row')].filter("
                          "(each) => each.getClientRects().length).length")
    assert visible == sum(kinds(browser, "right").values())


def test_drawing(opened: Open) -> None:
    browser = opened("layer.py")
    choose(browser, "trace", LAST)
    browser.click("#as-drawing")
    drawn = browser.run("[...document.querySelectorAll('.stage.shown .canvas svg')].length")
    assert drawn == 2
    browser.run("document.querySelector('.on-right svg .body').id = 'box'; 0")
    browser.click("#box")
    assert panel(browser).startswith("matmul_epilogue")
    assert browser.run("document.querySelector('#box').classList.contains('picked')")
    before = browser.run("document.querySelector('.on-right svg').getAttribute('viewBox')")
    browser.click(".on-right .zoom button")
    assert browser.run("document.querySelector('.on-right svg').getAttribute('viewBox')") != before
    dragged = browser.run("document.querySelector('.on-left svg').getAttribute('viewBox')")
    browser.drag(".on-left .canvas", 40, 30)
    assert browser.run("document.querySelector('.on-left svg').getAttribute('viewBox')") != dragged
    browser.click("#as-list")
    assert browser.run("document.querySelectorAll('.canvas:not([hidden])').length") == 0


@pytest.mark.parametrize("window", [{}, {"width": 420, "height": 800, "dark": True}])
def test_a_model_with_a_repeat(window: dict[str, Any], opened: Open) -> None:
    browser = opened(str(EXAMPLES / "llama.py"), **window)
    choose(browser, "trace", LAST)
    browser.run(f"{row('repeat')}.click(); 0")
    assert "30" in panel(browser)
    assert "and 2" in panel(browser)
    browser.run(f"{row('attention')}.click(); 0")
    assert "attention(team" in panel(browser)
    browser.run(f"{row('take_rows', 'left')}.click(); 0")
    assert browser.run(f"{row('take_rows', 'left')}.classList.contains('picked')")
    wide = browser.run("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    top = browser.run("document.querySelector('.picked').getBoundingClientRect().top")
    assert 0 <= top < browser.run("document.getElementById('panel').getBoundingClientRect().top")
