"""A language model of fixed length: what `generate --static` runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.hf.checkpoint import Checkpoint
from graphdsl.hf.generate import Session
from graphdsl.hf.model import LanguageModel
from graphdsl.hf.prompt import Tokenizer
from graphdsl.lazy import torch_dtype
from graphdsl.passes.static import StaticGraphs, static
from graphdsl.runtime.operator import Operator
from graphdsl.runtime.static import StaticSession


@dataclass(frozen=True)
class StaticModel:
    """`model` as two parts of the fixed `length`, a StepModel for one prompt at a time; `cache` is
    as for `graphdsl.static`."""

    model: LanguageModel
    length: int
    cache: str = "shift"

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @property
    def max_positions(self) -> int:
        """That of the model: a cache that is full before is an error and no end."""
        return self.model.max_positions

    @property
    def checkpoint(self) -> Checkpoint:
        return self.model.checkpoint

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def plain_tokenizer(self) -> Tokenizer:
        return self.model.plain_tokenizer

    @cached_property
    def graphs(self) -> StaticGraphs:
        return static(self.model.graph(self.model.config), self.length, cache=self.cache)

    @cached_property
    def operator(self) -> Operator:
        """The part for a prompt, with the weights bound."""
        return self.model.bind(self.model.opened(self.graphs.block))

    @cached_property
    def step_operator(self) -> Operator:
        """The part for one token. Weights that both parts pack alike are in memory once."""
        made = self.model.opened(self.graphs.block_cache)
        if made.manifest["params"] == self.operator.manifest["params"]:
            return made.bind_packed(self.operator.weights)
        return self.model.bind(made)

    def start(self, batch: int, capacity: int) -> Session:
        """An empty session; `capacity` is that of the caches, whatever is asked for. Raises
        GraphError for more than one row."""
        if batch != 1:
            raise GraphError(f"{batch} prompts at once; a static graph is for one",
                             hint="run them one after another, or without --static")
        return StaticSession(self.operator, self.step_operator, self.length,
                             torch_dtype(self.model.options.dtype), self.cache)
