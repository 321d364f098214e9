"""A whole model: a checkpoint's weights in an operator built from the model's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from graphdsl.backend import find_backend
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.hf.checkpoint import Checkpoint, open_checkpoint
from graphdsl.hf.fetch import resolve_model
from graphdsl.hf.generate import Completion, Session, collect, generate
from graphdsl.hf.prompt import Tokenizer
from graphdsl.hf.sampling import Sampling
from graphdsl.hf.tokenizer import load_plain_tokenizer, load_tokenizer
from graphdsl.ir import Graph
from graphdsl.layer import trace
from graphdsl.lazy import torch
from graphdsl.passes.quantise import check_quants, quantised
from graphdsl.quant import NONE, OWN, Quant, Quantised, act_of, asked
from graphdsl.runtime.group import Group
from graphdsl.runtime.operator import Operator, State
from graphdsl.serve.engine import CHUNK, MAX_BATCH, Engine
from graphdsl.serve.pool import OperatorPool


class CheckpointWeights(Mapping[str, "torch.Tensor | Quantised"]):
    """A checkpoint as a state dict with the names of our params; weights are read when asked for,
    so that only one is in memory twice. Those of `kept` come as the file has them quantised."""

    def __init__(self, checkpoint: Checkpoint, kept: Set[str] = frozenset()) -> None:
        self._checkpoint = checkpoint
        self._names = checkpoint.settings.family.names
        self._kept = kept

    def __getitem__(self, name: str) -> torch.Tensor | Quantised:
        if name in self._kept:
            return self._checkpoint.quantised(name)
        return self._checkpoint.param(name)

    def part(self, name: str, axis: int, start: int, size: int) -> torch.Tensor:
        """A part of a weight, which alone is read where the file's format allows it."""
        return self._checkpoint.part(name, axis, start, size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


USUAL = 1024
"""The tokens of a text for which an engine has blocks unless told otherwise."""
TABLES = ("embed", "head")
"""The params of a Decoder that hold a row for every token."""


@dataclass(frozen=True)
class Choice:
    """How the weights of linears and embeddings are stored: as the file has them quantised
    (`own`), in `quant`, or in the dtype of the model."""

    own: bool = False
    quant: Quant | None = None
    act: str = "float"

    @staticmethod
    def read(quantize: str | None, act: str | None, options: BuildOptions) -> Choice:
        """What `--quantize` and `--act` say. Raises GraphError for what they cannot say, and for a
        backend without quantised weights."""
        target = find_backend(options.backend, options.soc).target
        chosen = act_of(act, options.dtype)
        if quantize not in (None, NONE) or chosen != "float":
            check_quants(target)
        if quantize == OWN or (quantize is None and target.quants):
            return Choice(own=True, act=chosen)
        return Choice(quant=asked(quantize, act, options.dtype))

    def of(self, checkpoint: Checkpoint, name: str) -> Quant | None:
        """The format of the param of this name. The table and the head have 8 bits where the rest
        has 4: what they lose, every token loses, and they are a small part of most models."""
        if not self.own:
            if self.quant and self.quant.bits == 4 and name in TABLES:
                return replace(self.quant, bits=8, offset=False)
            return self.quant
        found = checkpoint.quant(name)
        return replace(found, act=self.act) if found else None


PLAIN = Choice()


class Mirror:
    """An i32 tensor that takes the numbers of others of its shape."""

    def __init__(self, *shape: int) -> None:
        self.tensor = torch.zeros(shape, dtype=torch.int32)
        self._numbers = self.tensor.numpy()
        self._given: torch.Tensor | None = None

    def take(self, given: torch.Tensor) -> None:
        """A tensor that is given again, with other numbers in it, is known again."""
        if given is not self._given:
            self._given = given if given.is_cpu else None
            self._source = given.cpu().numpy()
        self._numbers[:] = self._source


class OperatorSession:
    """A run of an operator over a batch, with its KV caches. A step of one token a row allocates
    nothing and asks nothing of torch: its tensors are the session's."""

    def __init__(self, operator: Operator, state: State, batch: int) -> None:
        self._operator, self._state, self._batch = operator, state, batch
        self._ids, self._positions = Mirror(batch, 1), Mirror(batch, 1)
        self._next = operator.prepared(self._ids.tensor, self._positions.tensor,
                                       self._last(1), state=state)
        self._logits = self._row = torch.empty(0)

    def step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits after the last id of every row: f32 [batch, vocab]."""
        if ids.shape != self._ids.tensor.shape or positions.shape != ids.shape:
            logits: torch.Tensor = self._operator(ids.int().contiguous(), positions.contiguous(),
                                                  self._last(ids.shape[1]), state=self._state)
            return logits[:, 0].to(ids.device)
        self._ids.take(ids)
        self._positions.take(positions)
        logits = self._next()
        if logits is not self._logits:
            self._logits, self._row = logits, logits[:, 0].to(ids.device)
        return self._row

    def _last(self, tokens: int) -> torch.Tensor:
        """Which token of every row the logits are of."""
        return torch.full((self._batch, 1), tokens - 1, dtype=torch.int32)


@dataclass(frozen=True)
class LanguageModel:
    """What `graphdsl.load_model` gives: logits and text from one native call a step. `config` is
    that of the model's family, `choice` how its weights are stored."""

    checkpoint: Checkpoint
    config: Any
    options: BuildOptions
    choice: Choice = PLAIN
    group: Group | None = None
    """This process's rank, where it has a part of the model."""

    def __repr__(self) -> str:
        return (f"LanguageModel({self.checkpoint.path.name!r}, backend={self.options.backend!r}, "
                f"dtype={self.options.dtype!r})")

    @property
    def vocab(self) -> int:
        return self.checkpoint.settings.vocab

    @property
    def max_positions(self) -> int:
        return self.checkpoint.settings.max_positions

    @cached_property
    def operator(self) -> Operator:
        """The step from token ids to logits, with the weights bound."""
        return self._built(self.config)

    def _built(self, config: Any) -> Operator:
        return self.bind(self.opened(self.graph(config)))

    def graph(self, config: Any) -> Graph:
        """That of the model with a config of its family, its weights quantised as was chosen."""
        graph = trace(self.checkpoint.settings.family.model(config), self.options.dtype)
        return quantised(graph, lambda name, kind: self.choice.of(self.checkpoint, name))

    def opened(self, graph: Graph) -> Operator:
        """The operator of a graph, without weights."""
        return Operator(build_graph(graph, self.options).path, self.group)

    def bind(self, operator: Operator) -> Operator:
        """Gives an operator, whose params are those of the model, the model's weights."""
        kept = {w["name"] for w in operator.manifest["weights"] if "quant" in w}
        return operator.bind(CheckpointWeights(self.checkpoint,
                                               kept if self.choice.own else frozenset()))

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, as transformers loads it."""
        return load_tokenizer(self.checkpoint.path, self.options.cache)

    @cached_property
    def plain_tokenizer(self) -> Tokenizer:
        """The same for ids and text alone: without transformers, where it was converted before."""
        return load_plain_tokenizer(self.checkpoint.path, self.options.cache)

    def start(self, batch: int, capacity: int) -> Session:
        """An empty session for `batch` rows of at most `capacity` tokens."""
        return OperatorSession(self.operator, self.operator.new_state(batch, capacity), batch)

    def logits(self, ids: torch.Tensor,
               attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """f32 [batch, tokens, vocab] for ids [batch, tokens]; rows where the mask is 0 (padding on
        either side) hold nothing of meaning."""
        return self._whole(self.operator, ids, ids, attention_mask)[0]

    def logits_of_embeddings(self, embeddings: torch.Tensor,
                             attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits for given embeddings [batch, tokens, hidden], of the model's dtype."""
        operator = self._with_embeddings
        return self._whole(operator, embeddings, embeddings[..., 0], attention_mask)[0]

    def hidden_states(self, ids: torch.Tensor,
                      attention_mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The embedding and every layer's output, each [batch, tokens, hidden], before the last
        norm."""
        return self._whole(self._with_hidden_states, ids, ids, attention_mask)[1:]

    @cached_property
    def _with_embeddings(self) -> Operator:
        return self._built(replace(self.config, embeddings=True))

    @cached_property
    def _with_hidden_states(self) -> Operator:
        return self._built(replace(self.config, hidden_states=True))

    def _whole(self, operator: Operator, x: torch.Tensor, like: torch.Tensor,
               attention_mask: torch.Tensor | None) -> list[torch.Tensor]:
        """All rows of a batch in one step, from an empty cache; results lie where `x` does."""
        if like.dim() != 2 or not like.numel():
            raise GraphError(f"ids are {list(like.shape)}, wanted [batch, tokens]")
        batch, tokens = like.shape
        mask = torch.ones(batch, tokens) if attention_mask is None else attention_mask
        if mask.shape != like.shape:
            raise GraphError(f"attention_mask is {list(mask.shape)}, wanted {list(like.shape)}")
        positions = torch.where(mask.bool(), mask.long().cumsum(1) - 1, -1).int()
        rows = torch.arange(tokens, dtype=torch.int32).repeat(batch, 1)
        given = x.to(operator.device.current()) if x.is_floating_point() else x.int()
        result = operator(given.contiguous(), positions, rows,
                          state=operator.new_state(batch, tokens))
        results = [result] if isinstance(result, torch.Tensor) else result
        return [each.to(x.device) for each in results]

    def generate(self, ids: Sequence[Sequence[int]], max_new_tokens: int = 128,
                 sampling: Sampling | None = None, seed: int | None = None) -> Completion:
        """New ids for every prompt; greedy unless `sampling` says otherwise, and ended by the
        model's own end-of-text ids."""
        chosen = sampling or Sampling(max_new_tokens, greedy=True, eos=self.checkpoint.settings.eos)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        tokenizer = self.tokenizer if chosen.stop_strings else None
        steps = generate(self, ids, chosen, generator=generator, tokenizer=tokenizer)
        with torch.inference_mode():
            return collect(ids, steps)

    @cached_property
    def paged(self) -> LanguageModel:
        """This model with paged KV caches, as an engine needs them; itself where it has them.
        Raises GraphError for a backend without, or where another policy was asked for."""
        target = find_backend(self.options.backend, self.options.soc).target
        chosen = self.options.passes.get("kv_layout", {})
        policy = chosen.get("policy") or "paged"
        if policy != "paged":
            raise GraphError(f"an engine decodes over paged KV caches, but these are {policy}",
                             hint="--pass kv_layout:policy=paged, or no policy at all")
        if (chosen.get("policy") or target.kv_policy) == "paged":
            return self
        passes = {**self.options.passes, "kv_layout": {**chosen, "policy": policy}}
        return replace(self, options=replace(self.options, passes=passes))

    def pool(self, blocks: int) -> OperatorPool:
        """A pool of so many KV blocks. Raises GraphError where the caches are not paged."""
        return OperatorPool(self.operator, blocks)

    def engine(self, blocks: int | None = None, *, max_batch: int = MAX_BATCH,
               chunk: int = CHUNK) -> Engine:
        """An engine that decodes many requests together; greedy unless they say otherwise, and
        ended by the model's own end-of-text ids. `blocks` is the size of its pool (unless given,
        what `max_batch` texts of 1024 tokens take).

        Raises GraphError as `paged` and `Engine` do."""
        model = self.paged
        if blocks is None:
            each = -(-min(USUAL, self.max_positions) // max(model.operator.block, 1))
            blocks = max(max_batch, 1) * each
        return Engine(model, blocks, max_batch=max_batch, chunk=chunk,
                      sampling=Sampling(greedy=True, eos=self.checkpoint.settings.eos),
                      tokenizer=lambda: self.tokenizer)


def open_model(name: str | Path, options: BuildOptions,
               notice: Callable[[str], None] = lambda text: None, *, quantize: str | None = None,
               act: str | None = None, group: Group | None = None) -> LanguageModel:
    """The model of a Hugging Face folder, a GGUF file or a packaged model's name.

    `quantize` is a format for the weights, "file" (those that the file has quantised stay so, the
    default where the backend has quantised weights) or "none". Raises GraphError for what is not
    one or cannot be, ToolError when fetching or compiling fails.
    """
    choice = Choice.read(quantize, act, options)
    checkpoint = open_checkpoint(resolve_model(str(name), options.cache))
    notice(f"{checkpoint.path.name}: {checkpoint.settings.layers} layers")
    return LanguageModel(checkpoint, checkpoint.settings.family.config, options, choice, group)
