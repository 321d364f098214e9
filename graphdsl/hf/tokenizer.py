"""Tokenizers through transformers, and the conversion of those in GGUF files, cached."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from graphdsl.errors import GraphError
from graphdsl.hf.extras import need, tokenizer_errors
from graphdsl.hf.fields import Fields, read_json
from graphdsl.hf.gguf_header import read_header


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    chat_template: Any

    def __call__(self, text: str) -> Any: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...


def load_tokenizer(
    path: Path, cache: Path, notice: Callable[[str], None] = lambda text: None
) -> Any:
    """The tokenizer of a Hugging Face folder or a GGUF file, as transformers has it.

    One in a GGUF file is converted the first time (seconds) and kept in `cache`, under a hash of
    the file's header and the versions of what converts it. `notice` is told of an entry that is
    damaged and made again, and of a cache that cannot be written. Raises GraphError if there is no
    tokenizer or it cannot be read.
    """
    if path.is_dir():
        return _from_folder(path)
    return _from_gguf(path, cache, notice)


def encode_prompt(tokenizer: Tokenizer, text: str, raw: bool = False) -> list[int]:
    """The ids that the model is given: `text` as the user's turn in the tokenizer's chat template,
    or, if `raw` or where there is no template, as it stands.

    Raises GraphError if nothing is left to give the model.
    """
    if raw or not tokenizer.chat_template:
        ids = tokenizer(text)["input_ids"]
    else:
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    if not ids:
        raise GraphError("the prompt is empty; wanted: at least one token")
    return [int(i) for i in ids]


def _from_folder(folder: Path) -> Any:
    file = folder / "tokenizer.json"
    if file.is_file() and "model" not in read_json(file):
        raise GraphError(f"{file}: not a tokenizer: 'model' is missing")
    if not file.is_file() and not (folder / "tokenizer_config.json").is_file():
        raise GraphError(
            f"{folder}: no tokenizer: neither tokenizer.json nor tokenizer_config.json is there",
            hint="give token ids instead of text (--prompt-ids)",
        )
    if not file.is_file():
        _refuse_code(folder / "tokenizer_config.json")
    auto = need("transformers").AutoTokenizer
    with tokenizer_errors(folder, "the tokenizer cannot be read"):
        # Not given, transformers would ask on the terminal whether to run code of the folder.
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _refuse_code(path: Path) -> None:
    """Raises GraphError for a tokenizer that is Python code in the folder, as ChatGLM's."""
    code = Fields(path, read_json(path)).mapping("auto_map").values.get("AutoTokenizer")
    if code:
        raise GraphError(
            f"{path}: the tokenizer is code of the folder's own, which is not run",
            hint="give token ids and take them (--prompt-ids, --ids)",
        )


def _from_gguf(path: Path, cache: Path, notice: Callable[[str], None]) -> Any:
    key = _cache_key(path)
    folder = cache / "tokenizers" / key
    if (folder / "tokenizer.json").is_file():
        try:
            return _from_cache(folder)
        except GraphError as error:
            notice(f"the cached tokenizer is made again: {error}")
    auto = need("transformers").AutoTokenizer
    with tokenizer_errors(path, "the tokenizer cannot be read"):
        tokenizer = auto.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    try:
        _store(tokenizer, folder)
    except GraphError as error:
        notice(str(error))
    return tokenizer


def _cache_key(path: Path) -> str:
    """Depends on all that the conversion reads: the header holds the vocabulary and the template,
    so the same model is found again wherever it lies."""
    header = read_header(path)
    if "tokenizer.ggml.tokens" not in header.fields:
        raise GraphError(
            f"{path}: no tokenizer: the metadata has no 'tokenizer.ggml.tokens'",
            hint="give token ids instead of text (--prompt-ids)",
        )
    versions = f"{need('transformers').__version__} {need('tokenizers').__version__}"
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(header.end))
    digest.update(versions.encode())
    return digest.hexdigest()[:32]


def _from_cache(folder: Path) -> Any:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder / name)
    fast = need("transformers").PreTrainedTokenizerFast
    with tokenizer_errors(folder, "the tokenizer cannot be read"):
        return fast.from_pretrained(folder, local_files_only=True)


def _store(tokenizer: Any, folder: Path) -> None:
    """Writes the entry beside its place and renames it there file by file, the one that makes the
    entry visible last, so that a reader and a killed process never meet half of one."""
    with tokenizer_errors(folder, "the tokenizer is not cached"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".store-", dir=folder.parent) as temporary:
            tokenizer.save_pretrained(temporary)
            files = sorted(Path(temporary).iterdir(), key=lambda p: p.name == "tokenizer.json")
            for file in files:
                file.replace(folder / file.name)
