"""graphdsl explain: by the user's lines, what fired, what nearly did, and why not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from clicase import SMALL, Cli, Refused

from graphdsl import passes
from graphdsl.errors import Loc
from graphdsl.passes.base import Fired, Missed
from graphdsl.passes.catalogue import PASS_RULES
from graphdsl.passes.pipeline import PassReport
from graphdsl.seeing.facts import Lines
from graphdsl.seeing.sites import counts, distant, site_lines, sites

EXAMPLES = Path(__file__).parents[2] / "examples"
FILE, OTHER = "/far/layer.py", "/far/other.py"


def report(name: str, *entries: Fired | Missed) -> PassReport:
    return PassReport(name, 0.0, 1, 1, tuple(e for e in entries if isinstance(e, Fired)),
                      tuple(e for e in entries if isinstance(e, Missed)))


def told(*reports: PassReport, rule: str = "") -> list[str]:
    return [line for site in sites(reports, rule) for line in site_lines(site, Lines())]


def test_lines_of_a_file_in_order_and_what_has_none_last() -> None:
    taken = (Loc(FILE, 12), Loc(FILE, 9), None, Loc(OTHER, 1), Loc(FILE, 2))
    assert told(report("one", Fired("B", Loc(FILE, 12), "", taken), Fired("A", Loc(FILE, 3)),
                       Fired("K", None, "kv.k")),
                report("two", Missed("C", Loc(FILE, 3), "attn", "why not", Loc(FILE, 2)),
                       Fired("D", Loc(OTHER, 1)), Fired("E", Loc(FILE, 3)))) == [
        "layer.py:3",
        "  fired   A at layer.py:3 [one]",
        "  fired   E at layer.py:3 [two]",
        "  missed  C at layer.py:3 (attn): why not (made at layer.py:2) [two]",
        "          layer.py:2",
        "layer.py:12",
        "  fired   B at layer.py:12, with lines 2, 9, other.py:1 [one]",
        "other.py:1",
        "  fired   D at other.py:1 [two]",
        "at no line",
        "  fired   K (kv.k) [one]"]


def test_what_happens_in_every_layer_is_told_once() -> None:
    entries = [Fired("K", None, f"layers.{i}.kv.k") for i in range(12)]
    assert told(report("kv", *entries)) == [
        "at no line", "  fired   K (layers.*.kv.k) [kv], 12 times"]
    assert counts(sites([report("kv", *entries)])) == (12, 0)


def test_distant_misses_are_told_to_who_asks() -> None:
    near, far = (Missed("C", Loc(FILE, 3), "", why, None, matched)
                 for why, matched in (("near", 2), ("far", 1)))
    given = report("one", near, far)
    assert told(given) == ["layer.py:3", "  missed  C at layer.py:3: near [one]"]
    assert told(given, rule="C")[2] == "  missed  C at layer.py:3: far [one]"
    assert distant([given]) == {"C": 1}
    assert told(given, rule="D") == []


def test_a_near_miss_shows_both_lines(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text(SMALL.replace(
        "return silu(linear(x, self.w)) * self.config.scale + x",
        "h = linear(x, self.w)\n        s = silu(h)\n        return s * h + s"))
    lines = cli("explain", "layer.py").out.splitlines()
    at = next(i for i, line in enumerate(lines) if "missed  SiluMul" in line)
    assert lines[at].startswith("  missed  SiluMul at layer.py:26: ")
    assert lines[at + 1] == "          layer.py:25  s = silu(h)"
    assert "layer.py:26  return s * h + s" in lines[:at]
    only = cli("explain", "layer.py", "--rule", "SiluMul")
    assert all("SiluMul" in line for line in only.out.splitlines()
               if line.startswith(("  fired", "  missed")))
    assert only.last == "SiluMul fired 0 times, nearly once"


def test_json_tells_everything(cli: Cli) -> None:
    file = EXAMPLES / "llama_layer.py"
    told = json.loads(cli("explain", file, "--format", "json").out)
    merged = next(each for each in told if each["rule"] == "MergeLinears" and each["fired"])
    assert merged["pass"] == "expand"
    assert merged["line"].startswith("llama_layer.py:")
    assert "self.wq" in merged["source"]
    assert len(merged["lines"]) == 3
    assert {each["matched"] for each in told if not each["fired"]} >= {1, 2}
    only = json.loads(cli("explain", file, "--format", "json", "--rule", "AddRMSNorm").out)
    assert {each["rule"] for each in only} == {"AddRMSNorm"}


@pytest.mark.parametrize("name", ["llama_layer", "llama"])
def test_a_layer_that_fuses_well_has_few_near_misses(name: str, cli: Cli) -> None:
    result = cli("explain", EXAMPLES / f"{name}.py")
    missed = [line for line in result.out.splitlines() if line.startswith("  missed")]
    assert len(missed) <= 3
    assert "AddRMSNorm 1" in result.out or "AddRMSNorm 2" in result.out
    asked = cli("explain", EXAMPLES / f"{name}.py", "--rule", "AddRMSNorm").out
    assert "missed  AddRMSNorm at " in asked
    assert "wanted one made by add" in asked


def test_a_rule_of_another_backend(here: Path, refused: Refused) -> None:
    (here / "layer.py").write_text(SMALL)
    error = refused("explain", "layer.py", "--rule", "WeightFormat")
    assert "no rule WeightFormat for the cpu backend" in error
    assert "hint: rule of ascend: --backend ascend" in error


def test_every_rule_of_a_pass_can_be_asked_for(here: Path, cli: Cli) -> None:
    (here / "layer.py").write_text(SMALL)
    code = "".join(path.read_text() for path in Path(passes.__file__).parent.glob("*.py"))
    named = re.findall(r'(?:RULE = |Fired\(|Missed\(|fired_nodes\([^"]*)"(\w+)"', code)
    assert sorted(set(named)) == sorted(PASS_RULES)
    for rule in PASS_RULES:
        assert cli("explain", "layer.py", "--rule", rule).last.startswith(f"{rule} fired")
