"""Tokenizers that need nothing but the package tokenizers: transformers, whose import takes longer
than the rest of a start, is asked only to convert them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphdsl.errors import GraphError
from graphdsl.hf.chat_template import render_chat
from graphdsl.hf.extras import need, tokenizer_errors
from graphdsl.hf.fields import Fields, read_json
from graphdsl.hf.prompt import Tokenizer, encode_prompt

JSON, PLAIN = "tokenizer.json", "plain.json"
"""The file that tokenizers reads, and ours of what a tokenizer is besides."""
PROBE = " Größe,  the 'end' . I'm\n\n\tdone !"
"""A text of what some tokenizers treat in a way of their own."""


@dataclass(frozen=True)
class PlainTokenizer:
    """What is used of a transformers tokenizer, over the same `backend` of tokenizers."""

    backend: Any
    chat_template: str | None
    special_tokens: Mapping[str, str]
    """Those with a name, as "bos_token"."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        encoded = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(self, conversation: list[dict[str, str]], *,
                            add_generation_prompt: bool, tokenize: Literal[False]) -> str:
        """The text of a conversation; ids are made of it by a call. Raises as render_chat."""
        assert self.chat_template is not None, "the tokenizer has no chat template"
        return render_chat(self.chat_template, conversation, special_tokens=self.special_tokens,
                           add_generation_prompt=add_generation_prompt)


def write_plain(tokenizer: Any, folder: Path) -> None:
    """Makes a plain tokenizer of a folder where `tokenizer`, of transformers, was saved: writes
    beside the tokenizer.json what that does not hold.

    Leaves the folder as it is where a plain one does not do the same: where it is not over
    tokenizers, or its class, its settings or its template do what a plain one does not.
    """
    template = tokenizer.chat_template
    if not (folder / JSON).is_file() or not isinstance(template, str | None):
        return
    special = tokenizer.special_tokens_map
    values = {"chat_template": template, "special_tokens": special}
    (folder / PLAIN).write_text(json.dumps(values, indent=2, sort_keys=True))
    text = "".join([PROBE, *special.values(), PROBE])
    if _answers(read_plain(folder), text) != _answers(tokenizer, text):
        (folder / PLAIN).unlink()


def read_plain(folder: Path) -> PlainTokenizer:
    """The tokenizer of a folder that write_plain wrote to. Raises GraphError for one that is
    damaged."""
    fields = Fields(folder / PLAIN, read_json(folder / PLAIN))
    with tokenizer_errors(folder, "the tokenizer cannot be read"):
        backend = need("tokenizers").Tokenizer.from_file(str(folder / JSON))
    # Those of the file are for batches, which transformers, too, pads and cuts only when asked.
    backend.no_padding()
    backend.no_truncation()
    template = fields.text("chat_template") if fields.has("chat_template") else None
    return PlainTokenizer(backend, template, fields.mapping("special_tokens").values)


def _answers(tokenizer: Tokenizer, text: str) -> list[Any]:
    """What tells tokenizers apart."""
    ids = tokenizer(text)["input_ids"]
    shown = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False)]
    return [ids, *shown, tokenizer(text, add_special_tokens=False)["input_ids"],
            _prompt(tokenizer, text)]


def _prompt(tokenizer: Tokenizer, text: str) -> list[int] | str:
    try:
        return encode_prompt(tokenizer, text)
    except GraphError as error:  # a template that takes no single turn has to say so in both
        return str(error)
