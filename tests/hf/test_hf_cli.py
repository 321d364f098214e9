"""graphdsl generate on tiny models: tokens, printing, and files that are damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import edit_json, tiny_model, write_gguf

from graphdsl import GraphError, load_model
from graphdsl.cli import main
from graphdsl.hf.model import LanguageModel

Generate = Callable[..., tuple[int, str, str]]
PROMPT = "1 5 9 77 23"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def generate(builds: Path, monkeypatch: pytest.MonkeyPatch,
             capfd: pytest.CaptureFixture[str]) -> Generate:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(builds))

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["generate", *map(str, argv)])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def last_ids(out: str) -> list[int]:
    return [int(i) for i in out.splitlines()[-1].split()]


def test_ids_equal_those_of_transformers(model: Path, generate: Generate, tokenizer: Any) -> None:
    code, out, _ = generate(model, "--prompt-ids", PROMPT, "--greedy", "--max-new-tokens", "12",
                            "--dtype", "f32", "--ids")
    assert code == 0
    theirs = tiny_model(vocab_size=len(tokenizer))
    ids = torch.tensor([[int(i) for i in PROMPT.split()]])
    with torch.inference_mode():
        wanted = theirs.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1]:]
    assert last_ids(out) == wanted.tolist()


def test_text_speed_and_seed(model: Path, generate: Generate) -> None:
    argv = (model, "--prompt", "What is gravity?", "--max-new-tokens", "6", "--dtype", "f32")
    first = generate(*argv, "--seed", "3", "--ids")[1]
    assert first.splitlines()[-2].startswith("prompt: ")
    assert "6 new tokens" in first.splitlines()[-2]
    assert last_ids(first) == last_ids(generate(*argv, "--seed", "3", "--ids")[1])
    assert last_ids(first) != last_ids(generate(*argv, "--seed", "4", "--ids")[1])
    raw = generate(*argv, "--seed", "3", "--ids", "--raw")[1]
    assert last_ids(raw) != last_ids(first)


def test_prompts_of_a_file(model: Path, generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("What is gravity?\n\na b c\n")
    _, out, _ = generate(model, "--prompts", tmp_path / "prompts.txt", "--greedy", "--ids",
                         "--max-new-tokens", "4", "--dtype", "f32")
    lines = out.splitlines()
    assert [line[:4] for line in lines if line.startswith("[")] == ["[1] ", "[2] "]
    for row, prompt in zip(lines[-2:], ("What is gravity?", "a b c"), strict=True):
        alone = generate(model, "--prompt", prompt, "--greedy", "--ids", "--max-new-tokens", "4",
                         "--dtype", "f32")[1]
        assert row == alone.splitlines()[-1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_truncated_folder(name: str, model: Path, tmp_path: Path, generate: Generate) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "broken"))
    cut(folder / name)
    code, out, err = generate(folder, "--prompt", "x")
    assert code == 2
    assert err.startswith("error: ")
    assert "Traceback" not in out + err


def test_truncated_gguf(tmp_path: Path, generate: Generate, tokenizer: Any) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)
    cut(tmp_path / "model.gguf")
    code, out, err = generate(tmp_path / "model.gguf", "--prompt", "x")
    assert (code, err.startswith("error: ")) == (2, True)
    assert "Traceback" not in out + err


def test_ids_that_the_model_has_not(model: Path, generate: Generate) -> None:
    code, _, err = generate(model, "--prompt-ids", "1 99999", "--dtype", "f32", "--ids")
    assert code == 2
    assert "99999" in err


def test_architecture_that_is_not_known(model: Path, tmp_path: Path, generate: Generate) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "other"))
    edit_json(folder / "config.json", model_type="abacus", architectures=["Abacus"])
    code, _, err = generate(folder, "--prompt", "x")
    assert code == 2
    assert "abacus" in err.lower()


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", "bf16"), ("ascend", "f16")])
def test_the_dtype_of_a_model_is_the_backends_own(backend: str, dtype: str, model: Path,
                                                  generate: Generate,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(model: LanguageModel) -> None:
        raise GraphError(f"builds {model.options.dtype}")

    monkeypatch.setattr(LanguageModel, "operator", property(stop))
    soc = ["--soc", "310p"] if backend == "ascend" else []
    code, _, error = generate(model, "--prompt-ids", PROMPT, "--ids", "--backend", backend, *soc)
    assert (code, f"builds {dtype}" in error) == (2, True)
    loaded = load_model(model, backend, soc=soc[-1] if soc else "")
    assert loaded.options.dtype == dtype
    assert repr(loaded) == f"LanguageModel({model.name!r}, backend={backend!r}, dtype={dtype!r})"
    assert "PATH" in loaded.options.environment
    assert "PATH" not in repr(loaded.options)
    assert load_model(model, "cpu", dtype="f32").options.dtype == "f32"


@pytest.mark.parametrize(("options", "message"), [
    ({"dtype": "f32"}, "builds no layers of f32"),
    ({"dtype": "bf16", "soc": "310p"}, "builds no layers of bf16: a 310p has none"),
    ({"soc": "310"}, "no SoC 310"),
    ({"passes": {"weight_format": {"format": "zz"}}}, "'zz' is not a choice"),
])
def test_models_are_refused_before_they_are_fetched(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        load_model("no-such-model", "ascend", **options)
