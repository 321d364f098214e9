"""graphdsl generate with KV caches of every layout: the tokens are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model

from graphdsl.cli import main

LONG, SHORT = "What is gravity?", "a b c"
OPTIONS = ("order=bsnd", "order=sbnd,policy=paged,block=3", "order=bnsd,policy=paged,block=16",
           "policy=shift", "order=sbnd,policy=shift")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "prompts.txt").write_text(f"{LONG}\n{SHORT}\n")
    return folder


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def wanted(model: Path, tokenizer: Any) -> list[list[int]]:
    """The tokens of transformers, prompt by prompt."""
    theirs, found = tiny_model(vocab_size=len(tokenizer)), []
    for prompt in (LONG, SHORT):
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        with torch.inference_mode():
            new = theirs.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=2)
        found.append(new[0, ids.shape[1]:].tolist())
    return found


@pytest.mark.parametrize("layout", [
    *OPTIONS[:3], *(pytest.param(each, marks=pytest.mark.full) for each in OPTIONS[3:])])
def test_tokens_are_those_of_transformers(
    layout: str, model: Path, builds: Path, wanted: list[list[int]],
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(builds))
    code = main(["generate", str(model), "--prompts", str(model / "prompts.txt"), "--raw",
                 "--greedy", "--max-new-tokens", "12", "--dtype", "f32", "--ids", "--pass",
                 f"kv_layout:{layout}"])
    lines = capfd.readouterr().out.splitlines()[-2:]
    assert code == 0
    assert [[int(i) for i in line.split()] for line in lines] == wanted
