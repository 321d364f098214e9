"""Random small models of a family, opened from disk as any model is, against transformers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bundle import bundle, with_prefix
from torch import Tensor
from transformers import AutoModelForCausalLM

from graphdsl.backend import find_backend
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.hf.checkpoint import Checkpoint, open_checkpoint
from graphdsl.ir import Graph, size_value
from graphdsl.layer import trace
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.reference import error_of, run
from graphdsl.runtime.operator import Operator

LOGITS = 1e-4
"""max|ours - theirs| / max|theirs| of a token's logits in f32."""
SLOTS = 16
SEEDS = range(20)

Draw = Callable[[random.Random], Any]
"""Draws a small config of transformers; its vocab_size is at least 10."""


@dataclass(frozen=True)
class Batch:
    """What real tokens a batch has (1) and which are padding (0), and how it comes: in so many
    tokens at a time, the prompt first."""

    mask: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]

    @property
    def positions(self) -> Tensor:
        """i32 [batch, tokens]; -1 where there is padding."""
        mask = torch.tensor(self.mask)
        return torch.where(mask.bool(), mask.cumsum(1) - 1, -1).int()


BATCHES = (
    Batch(((1,) * 13,) * 2, (9, 3, 1)),
    Batch(((0, 0, 0, 1, 1, 1, 1, 1, 1), (1,) * 9, (1, 1, 1, 1, 0, 0, 0, 1, 1)), (7, 1, 1)),
)
"""One that comes in pieces; one that is padded on the left, not at all and on the right."""


@dataclass(frozen=True)
class Trial:
    """A model of transformers, and the same from disk."""

    seed: int
    theirs: Any
    checkpoint: Checkpoint
    graph: Graph
    params: dict[str, Tensor]

    def ids(self, batch: Batch) -> Tensor:
        """i32 [batch, tokens]."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (len(batch.mask), len(batch.mask[0]))
        return torch.randint(0, self.checkpoint.settings.vocab, shape, generator=generator).int()

    def states(self, graph: Graph, rows: int) -> dict[str, Tensor]:
        """Caches for so many rows, filled with what may not be read."""
        dims = {"batch": rows, "slots": SLOTS}
        return {v.name: torch.full([size_value(s, dims) for s in v.shape], torch.nan)
                for v in graph.state}


def drawn_trial(draw: Draw, seed: int, folder: Path) -> Trial:
    """The model of config number `seed`, with random weights, written to a folder and opened."""
    model = random_model(draw(random.Random(seed)), seed)
    model.save_pretrained(folder)
    return opened_trial(seed, model, folder)


def random_model(config: Any, seed: int) -> Any:
    """A model of transformers with random weights, every part of it written as plain maths."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager").eval()
    randomise(model)
    return model


def opened_trial(seed: int, model: Any, folder: Path) -> Trial:
    """A model that gives logits as those of transformers do, and the folder that holds it."""
    checkpoint = open_checkpoint(folder)
    family = checkpoint.settings.family
    graph = trace(family.model(family.config))
    assert family.names.keys() == {v.name for v in graph.params}
    left_over = set(checkpoint.source.shapes()) - set(checkpoint.names())
    assert not left_over, "weights in the folder that the Model has not"
    params = {name: checkpoint.param(name) for name in family.names}
    return Trial(seed, model, checkpoint, graph, params)


@torch.no_grad()
def randomise(model: Any) -> None:
    """Weights that keep numbers near 1, biases and norms included, so that none goes unnoticed."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5)
        else:
            weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors this small are soonest done by a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
@torch.no_grad()
def wanted(trial: Trial, batch: Batch) -> Tensor:
    """Logits [batch, tokens, vocab] of transformers: of the prompts together, padded, and of what
    comes after them from every row alone, for transformers counts padding inside of a row to the
    window of a sliding attention."""
    ids, mask, prompt = trial.ids(batch).long(), torch.tensor(batch.mask), batch.steps[0]
    counted = batch.positions.clamp_min(0).long()
    together = trial.theirs(ids[:, :prompt], attention_mask=mask[:, :prompt],
                            position_ids=counted[:, :prompt]).logits
    result = torch.zeros(*ids.shape, together.shape[-1])
    for row, real in enumerate(mask.bool()):
        result[row, real] = trial.theirs(ids[row, real][None]).logits[0].float()
    result[:, :prompt] = together
    return result


Machine = Callable[[Sequence[Trial], Batch], list[Tensor]]
"""Logits [batch, tokens, vocab] of every trial, the batch having come step by step."""


def pieces(batch: Batch) -> Iterator[slice]:
    """The tokens of every step."""
    end = 0
    for size in batch.steps:
        yield slice(end, end + size)
        end += size


def all_rows(positions: Tensor) -> Tensor:
    """The rows that ask for the logits of all tokens: i32 [batch, tokens]."""
    return torch.arange(positions.shape[1], dtype=torch.int32).expand(positions.shape).contiguous()


@one_thread()
def in_reference(trials: Sequence[Trial], batch: Batch) -> list[Tensor]:
    """The Model as it was written, run by the reference."""
    return [_run_reference(trial, trial.graph, trial.params, batch) for trial in trials]


@one_thread()
def after_passes(trials: Sequence[Trial], batch: Batch) -> list[Tensor]:
    """What the passes make of the Model for the cpu backend, run by the reference."""
    found = []
    for trial in trials:
        lowered = run_pipeline(trial.graph, find_backend("cpu").target)
        made = {name: run(recipe, {}, trial.params)[0]
                for name, recipe in lowered.recipes.items()}
        found.append(_run_reference(trial, lowered.graph, {**trial.params, **made}, batch))
    return found


def _run_reference(trial: Trial, graph: Graph, params: dict[str, Tensor], batch: Batch) -> Tensor:
    ids, state, found = trial.ids(batch), trial.states(graph, len(batch.mask)), []
    for piece in pieces(batch):
        positions = batch.positions[:, piece]
        given = [ids[:, piece], positions, all_rows(positions)]
        logits, *new = run(graph, given, params, state)
        state = dict(zip(state, new, strict=True))
        found.append(logits)
    return torch.cat(found, 1)


def on_the_cpu(trials: Sequence[Trial], options: BuildOptions) -> Machine:
    """All models in one library of the cpu backend."""
    operator = Operator(build_graph(bundle([t.graph for t in trials]), options).path)
    operator.bind({name: tensor for i, trial in enumerate(trials)
                   for name, tensor in with_prefix(i, trial.params).items()})

    def logits(trials: Sequence[Trial], batch: Batch) -> list[Tensor]:
        state = operator.new_state(len(batch.mask), SLOTS)
        for tensor in state.values():
            tensor.fill_(torch.nan)
        found: list[Any] = []
        for piece in pieces(batch):
            positions = batch.positions[:, piece].contiguous()
            given = [t for trial in trials for t in (trial.ids(batch)[:, piece].contiguous(),
                                                     positions, all_rows(positions))]
            result = operator(*given, state=state)
            found.append([result] if isinstance(result, Tensor) else result)
        return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]

    return logits


def check(trials: Sequence[Trial], machine: Machine) -> None:
    """The logits of every real token are those of transformers, in every batch."""
    for batch in BATCHES:
        real = torch.tensor(batch.mask).bool()
        for trial, found in zip(trials, machine(trials, batch), strict=True):
            expected = wanted(trial, batch)
            worst = max(map(error_of, found[real], expected[real]))
            assert worst <= LOGITS, (trial.seed, batch, worst, trial.checkpoint.settings)


def check_seed(draw: Draw, seed: int, folder: Path) -> None:
    """Config number `seed` in the reference and after all passes."""
    trial = drawn_trial(draw, seed, folder)
    check([trial], in_reference)
    check([trial], after_passes)


def check_cpu(draw: Draw, seeds: Sequence[int], folder: Path, options: BuildOptions) -> None:
    """Configs of these numbers on the cpu backend, in one library."""
    with one_thread():
        trials = [drawn_trial(draw, seed, folder / str(seed)) for seed in seeds]
    check(trials, on_the_cpu(trials, options))


@one_thread()
@torch.no_grad()
def check_variants(draw: Draw, seed: int, folder: Path) -> None:
    """Embeddings instead of ids give the same logits, and hidden states are those that
    transformers returns; its last one is left out, which comes after the last norm."""
    trial, batch = drawn_trial(draw, seed, folder), BATCHES[0]
    family = trial.checkpoint.settings.family
    config = replace(family.config, embeddings=True, hidden_states=True)
    graph = trace(family.model(config))
    embeddings = trial.theirs.get_input_embeddings()(trial.ids(batch).long())
    rows = torch.tensor([[5], [2]], dtype=torch.int32)
    expected = trial.theirs(inputs_embeds=embeddings, output_hidden_states=True)
    given = [embeddings, batch.positions, rows]
    logits, *hidden = run(graph, given, trial.params, trial.states(graph, 2))
    assert error_of(logits[:, 0], expected.logits[torch.arange(2), rows[:, 0].long()]) <= LOGITS
    layers = trial.checkpoint.settings.layers
    assert len(expected.hidden_states) == layers + 1
    for ours, theirs in zip(hidden[:layers], expected.hidden_states[:layers], strict=True):
        assert error_of(ours, theirs) <= LOGITS
