"""Rendering chat templates as transformers documents them: jinja with a few functions more, in a
sandbox, since they come with models.

Source: "Writing a chat template" in transformers' documentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def render_chat(template: str, messages: Sequence[Mapping[str, str]], *,
                add_generation_prompt: bool, special_tokens: Mapping[str, str]) -> str:
    """The text of a conversation: messages have "role" and "content"; special_tokens are those the
    template may name ("bos_token" and so on).

    Raises jinja2.TemplateError for a template that is not valid, that refuses the conversation
    (raise_exception), or that does what the sandbox forbids.
    """
    return _environment().from_string(template).render(
        messages=messages, tools=None, documents=None,
        add_generation_prompt=add_generation_prompt, **special_tokens)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=["jinja2.ext.loopcontrols"])
    made.filters["tojson"] = _to_json
    # Plain functions, of which the sandbox lets a template see nothing but the call.
    made.globals.update(raise_exception=_refuse, strftime_now=_now, namespace=_namespace,
                        dict=_dict)
    return made


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """jinja's own is for HTML and escapes what means something there."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


class _Names(Namespace):
    """A template's variables, which cannot take the place of what Python keeps behind names that
    begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _namespace(*given: Any, **names: Any) -> _Names:
    made = _Names()
    for name, value in dict(*given, **names).items():
        made[name] = value
    return made


def _dict(*given: Any, **names: Any) -> dict[Any, Any]:
    return dict(*given, **names)
