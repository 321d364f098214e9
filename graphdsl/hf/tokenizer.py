"""Tokenizers through transformers, and the conversion of those in GGUF files, cached."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from graphdsl.errors import GraphError
from graphdsl.hf.extras import need, tokenizer_errors, version_of
from graphdsl.hf.fields import Fields, read_json
from graphdsl.hf.gguf_header import read_header
from graphdsl.hf.plain_tokenizer import PLAIN, read_plain, write_plain
from graphdsl.hf.prompt import Tokenizer

FORM = 2
"""Of the cache's entries: another number makes all of them anew."""


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
    return _from_gguf(path, cache, notice, _from_cache)


def load_plain_tokenizer(
    path: Path, cache: Path, notice: Callable[[str], None] = lambda text: None
) -> Tokenizer:
    """The same for those who want ids and text and no more: one that was converted before is read
    without transformers, unless it does what only transformers can."""
    if path.is_dir():
        return cast(Tokenizer, _from_folder(path))
    return cast(Tokenizer, _from_gguf(path, cache, notice, _plain_from_cache))


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


def _from_gguf(path: Path, cache: Path, notice: Callable[[str], None],
               read: Callable[[Path], Any]) -> Any:
    """As `read` reads it from an entry of the cache, which is made if there is none."""
    key = _cache_key(path)
    folder = cache / "tokenizers" / key
    if (folder / "tokenizer.json").is_file():
        try:
            return read(folder)
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
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(header.end))
    digest.update(f"{FORM} {version_of('transformers')} {version_of('tokenizers')}".encode())
    return digest.hexdigest()[:32]


def _from_cache(folder: Path) -> Any:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder / name)
    fast = need("transformers").PreTrainedTokenizerFast
    with tokenizer_errors(folder, "the tokenizer cannot be read"):
        return fast.from_pretrained(folder, local_files_only=True)


def _plain_from_cache(folder: Path) -> Any:
    return read_plain(folder) if (folder / PLAIN).is_file() else _from_cache(folder)


def _store(tokenizer: Any, folder: Path) -> None:
    """Writes the entry beside its place and renames it there file by file, the one that makes the
    entry visible last, so that a reader and a killed process never meet half of one."""
    with tokenizer_errors(folder, "the tokenizer is not cached"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".store-", dir=folder.parent) as temporary:
            tokenizer.save_pretrained(temporary)
            write_plain(tokenizer, Path(temporary))
            files = sorted(Path(temporary).iterdir(), key=lambda p: p.name == "tokenizer.json")
            for file in files:
                file.replace(folder / file.name)
