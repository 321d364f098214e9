"""graphdsl generate with an engine: the options, their answers, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model

import graphdsl
from graphdsl.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
Generate = Callable[..., tuple[int, str, str]]
PROMPTS = ["What is gravity?", "a b c", "The stop sign stops the stopper", "a b c d e f g h"]
PAGED = "kv_layout:policy=paged,block=4"
COMMON = ("--dtype", "f32", "--ids", "--raw", "--max-new-tokens", "9")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def generate(builds: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
             capfd: pytest.CaptureFixture[str]) -> Generate:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(builds))

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["generate", str(model), *map(str, argv), *COMMON])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def rows(out: str, count: int) -> list[list[int]]:
    return [[int(i) for i in line.split()] for line in out.splitlines()[-count:]]


def test_beams(model: Path, generate: Generate, tokenizer: Any) -> None:
    theirs, wanted = tiny_model(vocab_size=len(tokenizer)), []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        with torch.inference_mode():
            new = theirs.generate(ids, do_sample=False, max_new_tokens=9, eos_token_id=2,
                                  pad_token_id=0, num_beams=3)
        wanted.append(new[0, ids.shape[1]:].tolist())
    code, out, _ = generate("--prompts", model / "prompts.txt", "--beams", "3", "--pass", PAGED)
    assert (code, rows(out, 4)) == (0, wanted)
    code, out, _ = generate("--prompt", PROMPTS[0], "--beams", "3", "--greedy", "--pass", PAGED)
    assert (code, rows(out, 1)) == (0, wanted[:1])
    assert tokenizer.decode(wanted[0], skip_special_tokens=True) in out


def test_the_pool_and_the_batch_change_nothing(model: Path, generate: Generate) -> None:
    file = ("--prompts", model / "prompts.txt", "--seed", "5", "--pass", PAGED)
    code, out, _ = generate(*file)
    assert code == 0
    assert f"prompts: {len(PROMPTS)} of " in out
    wanted = rows(out, 4)
    assert [line[:4] for line in out.splitlines()[-9:-5]] == ["[1] ", "[2] ", "[3] ", "[4] "]
    for options in (("--max-batch", "1"), ("--max-batch", "3", "--blocks", "9")):
        code, out, _ = generate(*file, *options)
        assert (code, rows(out, 4)) == (0, wanted)
    assert "put back" in out
    for prompt, ids in zip(PROMPTS, wanted, strict=True):
        assert rows(generate("--prompt", prompt, "--seed", "5", "--pass", PAGED)[1], 1) == [ids]


@pytest.mark.parametrize(("options", "message"), [
    (("--beams", "3", "--temperature", "0.5"), "--beams 3 looks for the likeliest text, and "
                                               "--temperature is for texts that are drawn"),
    (("--beams", "2", "--seed", "1"), "leave out --beams or --seed"),
    (("--beams", "3", "--static", "64"), "--static runs one batch of fixed length, without"),
    (("--blocks", "3", "--static", "64"), "--static runs one batch of fixed length, without"),
    (("--beams", "3", "--max-batch", "2"), "3 beams, but at most 2 rows run at once"),
    (("--beams", "2", "--pass", "kv_layout:policy=shift"), "but these are shift"),
    (("--max-batch", "2", "--pass", "kv_layout:policy=contiguous"), "but these are contiguous"),
    (("--blocks", "1", "--pass", PAGED), "blocks of 4 slots, but the pool has 1"),
    (("--blocks", "2000000", "--pass", PAGED), "a pool of 2000000 blocks; wanted: 1 to 1048576"),
])
def test_refused(options: tuple[str, ...], message: str, generate: Generate) -> None:
    code, out, error = generate("--prompt", PROMPTS[0], *options)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in out + error


@pytest.mark.parametrize("option", ["--beams", "--max-batch", "--blocks"])
def test_numbers_that_are_none(option: str, generate: Generate) -> None:
    with pytest.raises(SystemExit) as stopped:
        generate("--prompt", PROMPTS[0], option, "0")
    assert stopped.value.code == 2


def test_a_prompt_without_room_refuses_the_file(model: Path, generate: Generate,
                                                tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"a b c\n{'x y ' * 80}\n")
    code, out, error = generate("--prompts", tmp_path / "prompts.txt")
    assert (code, "[1]" in out) == (2, False)
    assert "the model takes at most 64" in error


def test_the_example_of_the_page(model: Path, builds: Path, monkeypatch: pytest.MonkeyPatch,
                                 capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(builds))
    opened = graphdsl.load_model(model, dtype="f32", passes={"kv_layout": {
        "policy": "paged", "block": 4}})
    monkeypatch.setattr(graphdsl, "load_model", lambda name: opened)
    [block] = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    reasons = [request.reason for request in names["requests"]]
    assert reasons[2] == "cancelled"
    assert len(capfd.readouterr().out.splitlines()) >= 6
    assert names["engine"].blocks.free == 400
    assert names["other"].ids[:1] == names["drawn"].ids[:1]
