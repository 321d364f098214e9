"""The ids that a model is given for a user's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from graphdsl.errors import GraphError


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    @property
    def chat_template(self) -> Any: ...

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], *,
                            add_generation_prompt: bool, tokenize: Literal[False]) -> str: ...


def encode_prompt(tokenizer: Tokenizer, text: str, raw: bool = False) -> list[int]:
    """The ids that the model is given: `text` as the user's turn in the tokenizer's chat template,
    or, if `raw` or where there is no template, as it stands.

    Raises GraphError if nothing is left to give the model, and for a template that fails.
    """
    if raw or not tokenizer.chat_template:
        ids = tokenizer(text)["input_ids"]
    else:
        ids = tokenizer(_as_turn(tokenizer, text), add_special_tokens=False)["input_ids"]
    if not ids:
        raise GraphError("the prompt is empty; wanted: at least one token")
    return [int(i) for i in ids]


def _as_turn(tokenizer: Tokenizer, text: str) -> str:
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": text}]
    try:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:  # the last two from its expressions
        raise GraphError(f"the model's chat template fails for a single turn of text: {error}",
                         hint="--raw gives the model the text as it stands") from error
