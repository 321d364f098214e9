"""`graphdsl run --backend ascend`: every family of layers, in every phase, on both chips."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import graphdsl.commands.run as run_command
from graphdsl.cli import main
from graphdsl.commands.trial import make_trial
from graphdsl.reference import TOLERANCE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SIZES = "hidden=64, heads=4, kv_heads=2, ffn=96"
FAMILIES = {
    "llama": ("llama", "LlamaLayer", f"{SIZES}, head_dim=16"),
    "qwen2": ("qwen", "Qwen2Layer", f"{SIZES}, head_dim=32"),
    "qwen3": ("qwen", "Qwen3Layer", f"{SIZES}, head_dim=16"),
    "glm4": ("glm", "GlmLayer", f"{SIZES}, head_dim=32, rotary_dim=16"),
    "chatglm2": ("chatglm", "ChatGLM2Layer", f"{SIZES}, head_dim=32"),
    "gpt2": ("gpt2", "GPT2Layer", "hidden=64, heads=4, ffn=96, max_positions=512"),
}
"""The module, the layer and its sizes."""

CHIPS = (("910b", "f16"), ("910b", "bf16"), ("310p", "f16"))
CALLS = {
    "paged": ("prefill 1 1 0", "prefill 1 37 0", "prefill 2 5 0", "decode 1 1 7", "decode 2 1 131",
              "decode 2 5 0", "decode 2 3 6"),
    "contiguous": ("any 1 1 0", "any 2 7 0", "any 2 1 9", "any 1 3 140"),
}
"""What the phase is, then --batch, --tokens and --past. Prefills have no padding; a decode of
several tokens is a chunk, whose last sequence is padded on the left."""

CASES = [pytest.param(*case, id="-".join((case[0], *case[1], case[2])))
         for case in product(FAMILIES, CHIPS, CALLS)]
QUICK = ("glm4-910b-bf16-paged", "gpt2-310p-f16-paged", "qwen3-910b-f16-contiguous")
"""Between them every way to turn, every phase, both chips and dtypes."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(emulation: Path, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in this process: its exit code and what it printed."""
    for name in ("ATB_HOME_PATH", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRAPHDSL_CACHE", str(emulation))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def unpadded(*args: Any, padded: bool) -> Any:
        return make_trial(*args, padded=False)

    def command(*argv: str, padded: bool = True) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            if not padded:
                patch.setattr(run_command, "make_trial", unpadded)
            capfd.readouterr()
            try:
                code = main(("run", *argv, "--backend", "ascend"))
            except SystemExit as stop:
                code = int(str(stop.code))
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    yield command
    torch.set_num_threads(threads)


def source(family: str, folder: Path) -> str:
    """A user's file with the layer."""
    module, layer, sizes = FAMILIES[family]
    path = folder / f"{family}.py"
    path.write_text(f"from graphdsl.models.{module} import Config, {layer}\n\n\n"
                    f"def build():\n    return {layer}(Config({sizes}))\n")
    return str(path)


def check(run: Run, folder: Path, family: str, chip: tuple[str, str], policy: str) -> None:
    """All calls of one build are within the tolerance of its dtype."""
    soc, dtype = chip
    flags = ["--soc", soc, "--dtype", dtype, "--pass", f"kv_layout:policy={policy}"]
    for call in CALLS[policy]:
        phase, batch, tokens, past = call.split()
        code, out, error = run(source(family, folder), *flags, "--batch", batch, "--tokens",
                               tokens, "--past", past, padded=phase != "prefill")
        assert (code, error) == (0, ""), f"{call}\n{out}{error}"
        found = re.search(r"^max relative error (\S+) \(tolerance", out, re.M)
        assert found, out
        assert float(found[1]) < TOLERANCE[dtype], f"{call}\n{out}"


@pytest.mark.full
@pytest.mark.parametrize(("family", "chip", "policy"),
                         [case for case in CASES if case.id not in QUICK])
def test_layers_agree_with_the_reference(family: str, chip: tuple[str, str], policy: str,
                                         run: Run, tmp_path: Path) -> None:
    check(run, tmp_path, family, chip, policy)


@pytest.mark.parametrize(("family", "chip", "policy"),
                         [case for case in CASES if case.id in QUICK])
def test_some_layers_agree_with_the_reference(family: str, chip: tuple[str, str], policy: str,
                                              run: Run, tmp_path: Path) -> None:
    check(run, tmp_path, family, chip, policy)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("soc", "dtype", "reason"), [
    ("910b", "f32", "the ascend backend builds no layers of f32: ATB's RmsNorm, Rope, attention "
                    "and MUL take f16 and bf16 only"),
    ("310p", "f32", "the ascend backend builds no layers of f32: ATB's RmsNorm, Rope, attention "
                    "and MUL take f16"),
    ("310p", "bf16", "the ascend backend builds no layers of bf16: a 310p has none")])
def test_what_no_chip_has_is_refused(family: str, soc: str, dtype: str, reason: str, run: Run,
                                     tmp_path: Path) -> None:
    code, out, error = run(source(family, tmp_path), "--soc", soc, "--dtype", dtype)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {reason}")
    assert error.endswith("\n  hint: --dtype f16\n")
