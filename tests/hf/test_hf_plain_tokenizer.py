"""Tokenizers read without transformers, against those of transformers, and chat templates."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model, write_gguf
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from graphdsl.cli import main
from graphdsl.errors import GraphError
from graphdsl.hf import extras
from graphdsl.hf.chat_template import render_chat
from graphdsl.hf.plain_tokenizer import PLAIN, PlainTokenizer, write_plain
from graphdsl.hf.prompt import encode_prompt
from graphdsl.hf.tokenizer import load_plain_tokenizer, load_tokenizer

TEXTS = ["größer 日本語 😀😃 the end", " leading", "trailing  ", "<s>special</s> x", "",
         "I'm , not . done ! def f(x):\n\treturn x ** 2  # 12345"]

GENERATE = """
import sys
from graphdsl.cli import main
code = main(["generate", *sys.argv[1:]])
print("code", code, "transformers" in sys.modules)
"""


def check_alike(found: Any, wanted: Any, vocab: int) -> None:
    assert isinstance(found, PlainTokenizer)
    for text in TEXTS:
        for special in (True, False):
            assert (found(text, add_special_tokens=special)["input_ids"]
                    == wanted(text, add_special_tokens=special)["input_ids"])
        assert encode_prompt(found, text) == encode_prompt(wanted, text)
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        ids = torch.randint(0, vocab, (20,), generator=generator).tolist()
        for skip in (True, False):
            assert (found.decode(ids, skip_special_tokens=skip)
                    == wanted.decode(ids, skip_special_tokens=skip))


def test_it_is_that_of_transformers(gguf: Path) -> None:
    wanted = load_tokenizer(gguf, gguf.parent)
    check_alike(load_plain_tokenizer(gguf, gguf.parent), wanted, len(wanted))


def test_that_of_smollm2_is_that_of_transformers(smollm2: Path, cache: Path) -> None:
    wanted = load_tokenizer(smollm2, cache)
    check_alike(load_plain_tokenizer(smollm2, cache), wanted, len(wanted))


def test_padding_and_truncation_of_the_file_are_for_those_who_ask(gguf: Path) -> None:
    wanted = load_tokenizer(gguf, gguf.parent)
    found = load_plain_tokenizer(gguf, gguf.parent)
    entry = next((gguf.parent / "tokenizers").glob("*/tokenizer.json"))
    found.backend.enable_padding(length=64, pad_token="</s>", pad_id=2)  # type: ignore[attr-defined]
    found.backend.enable_truncation(3)  # type: ignore[attr-defined]
    found.backend.save(str(entry))  # type: ignore[attr-defined]
    check_alike(load_plain_tokenizer(gguf, gguf.parent), wanted, len(wanted))


def test_greedy_text_needs_no_transformers(gguf: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRAPHDSL_CACHE", str(gguf.parent))
    given = [str(gguf), "--greedy", "--prompt", "What", "--max-new-tokens", "8"]
    assert main(["generate", *given]) == 0  # which converts the tokenizer
    wanted = capsys.readouterr().out.splitlines()[:-1]
    again = subprocess.run([sys.executable, "-c", GENERATE, *given], capture_output=True,
                           text=True, check=True).stdout.splitlines()
    assert again[-1] == "code 0 False"
    assert again[:-2] == wanted


@pytest.mark.parametrize(("name", "value"), [
    ("split_special_tokens", True),
    ("chat_template", {"default": "a", "tool_use": "b"}),
    ("chat_template", "{% generation %}a{% endgeneration %}"),
    ("chat_template", "{{ dict.fromkeys('a') }}"),
])
def test_one_that_does_more_is_left_to_transformers(tokenizer: Any, tmp_path: Path, name: str,
                                                    value: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    write_plain(tokenizer, tmp_path)
    assert (tmp_path / PLAIN).is_file()
    (tmp_path / PLAIN).unlink()
    more = copy.deepcopy(tokenizer)
    setattr(more, name, value)
    write_plain(more, tmp_path)
    assert not (tmp_path / PLAIN).exists()


def test_an_entry_without_a_plain_form_is_read_by_transformers(gguf: Path) -> None:
    wanted = load_tokenizer(gguf, gguf.parent)
    next((gguf.parent / "tokenizers").glob("*/plain.json")).unlink()
    found = load_plain_tokenizer(gguf, gguf.parent)
    assert type(found) is type(wanted)


@pytest.mark.parametrize("content", ["{", "[]", '{"special_tokens": 3}', '{"chat_template": 3}'])
def test_a_damaged_entry_is_made_again(gguf: Path, content: str) -> None:
    notices: list[str] = []
    wanted = load_tokenizer(gguf, gguf.parent)
    entry = next((gguf.parent / "tokenizers").glob("*/plain.json"))
    entry.write_text(content)
    again = load_plain_tokenizer(gguf, gguf.parent, notices.append)
    assert encode_prompt(again, TEXTS[0]) == encode_prompt(wanted, TEXTS[0])
    assert "the cached tokenizer is made again" in notices.pop()
    check_alike(load_plain_tokenizer(gguf, gguf.parent, notices.append), wanted, len(wanted))
    assert not notices


def test_a_template_that_refuses_a_turn(gguf: Path, tokenizer: Any, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    refuses = copy.deepcopy(tokenizer)
    refuses.chat_template = "{{ raise_exception('a system turn comes first') }}"
    write_gguf(gguf, tiny_model(vocab_size=len(tokenizer)), tokenizer=refuses)
    monkeypatch.setenv("GRAPHDSL_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # converted, and from the cache
        assert main(["generate", str(gguf), "--prompt", "hi"]) == 2
        message = capsys.readouterr().err
        assert "the model's chat template fails for a single turn of text: a system turn" in message
        assert "hint: --raw" in message


def test_a_template_that_wants_other_content(tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(GraphError, match="the model's chat template fails"):
        encode_prompt(other, "hi")


def test_a_package_that_is_not_installed() -> None:
    assert extras.version_of("transformers").count(".") >= 1
    with pytest.raises(GraphError, match=r"'no_such_package' is needed.*\n  hint: pip install"):
        extras.version_of("no_such_package")


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = [{"role": "user", "content": "a <b> & 'c' é"}, {"role": "assistant", "content": "  d\n"}]


@pytest.mark.parametrize("template", [
    "{{ bos_token }}{% for m in messages %}\n  {% if loop.first %}\n[{{ m.role }}] {% endif %}\n"
    "{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}",
    "{% set ns = namespace(last='', n=0) %}{% for m in messages %}{% set ns.last = m.content %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.last }}{{ ns.n }}{{ ns.none }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}{{ dict(a=1, b=[2]) | tojson }}",
    "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{{ m.role }}"
    "{% continue %}x{% endfor %}",
    "{{ strftime_now('%Y') }}{{ tools is none }}{{ documents is none }}{{ other is defined }}",
    "{%- for m in messages[::-1] -%}{{ m.content.split(' ')[-1] }}{%- endfor -%}"
    "{{ range(3) | list }}",
])
@pytest.mark.parametrize("ask", [True, False])
def test_templates_render_as_in_transformers(template: str, ask: bool) -> None:
    wanted, _ = render_jinja_template([TURNS], chat_template=template, add_generation_prompt=ask,
                                      **SPECIAL)
    assert render_chat(template, TURNS, add_generation_prompt=ask,
                       special_tokens=SPECIAL) == wanted[0]


@pytest.mark.parametrize(("template", "error", "message"), [
    ("{{ ''.__class__.__mro__ }}", SecurityError, "unsafe"),
    ("{{ raise_exception.__globals__['json'] }}", SecurityError, "unsafe"),
    ("{{ namespace.__init__.__globals__ }}", SecurityError, "unsafe"),
    ("{% do messages.append(1) %}", TemplateError, "unknown tag 'do'"),
    ("{{ messages.append(1) }}", SecurityError, "not safely callable|unsafe"),
    ("{% set n = namespace() %}{% set n.__call__ = 1 %}", SecurityError, "cannot hold '__call__'"),
    ("{{ namespace(_a=1) }}", SecurityError, "cannot hold '_a'"),
    ("{{ raise_exception('roles take turns') }}", TemplateError, "^roles take turns$"),
    ("{% for m in messages %}", TemplateError, "Unexpected end of template"),
    ("{{ messages[7].content }}", TemplateError, "has no element 7"),
])
def test_templates_that_fail(template: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        render_chat(template, list(TURNS), add_generation_prompt=True, special_tokens=SPECIAL)
