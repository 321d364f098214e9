"""A small Llama with its caches in every order, policy and storage: the same logits and tokens.

Models are built many to a library. All of them are given the same tokens, in one call a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from bundle import bundle, with_prefix
from torch import Tensor

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import ORDERS, Graph, Layout
from graphdsl.layer import KVCache, trace
from graphdsl.models.llama import Config, Llama
from graphdsl.passes.samples import samples
from graphdsl.reference import STORAGE_TOLERANCE, error_of, run
from graphdsl.runtime.operator import Operator, State

CONFIG = Config(vocab=61, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
SLOTS = 64
STEPS = 40
LENGTHS = (7, 4)
LOGITS, ROUNDED = 1e-5, STORAGE_TOLERANCE["int8"]
"""max|ours - ref| / max|ref|: of caches that keep the numbers (and of all that round them alike),
and of those that round them."""

POLICIES = {"unpaged": ("", ":shift"), "paged/1": (":paged/1",), "paged/16": (":paged/16",)}
LIBRARIES = {name: [f"{order}{policy}{storage}" for policy in policies for order in ORDERS
                    for storage in ("", ":int8")] for name, policies in POLICIES.items()}
"""Caches of one library have one block table, and so one size of blocks."""


def model(layout: str) -> Graph:
    """The small Llama with its caches pinned to this layout."""
    made = Llama(CONFIG)
    for layer in made.layers:
        layer.kv = KVCache(CONFIG.kv_heads, CONFIG.head_dim, layout=layout)
    return trace(made)


@dataclass
class Models:
    """Models of one library, by layout, that go on together."""

    layouts: Sequence[str]
    operator: Operator
    state: State = field(default_factory=dict)

    @staticmethod
    def built(layouts: Sequence[str], options: BuildOptions,
              weights: Mapping[str, Tensor]) -> Models:
        whole = bundle([model(layout) for layout in layouts])
        operator = Operator(build_graph(whole, options).path)
        params = [with_prefix(i, weights) for i in range(len(layouts))]
        return Models(layouts, operator.bind({n: t for one in params for n, t in one.items()}))

    def start(self) -> Models:
        """With empty caches."""
        self.state = self.operator.new_state(len(LENGTHS), SLOTS)
        return self

    def step(self, ids: Tensor, positions: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """By layout: the logits [batch, len(rows), vocab] after these tokens."""
        given = [t.int().contiguous() for t in (ids, positions, rows)]
        found = self.operator(*given * len(self.layouts), state=self.state)
        return dict(zip(self.layouts, found, strict=True))


@dataclass(frozen=True)
class Step:
    """What all models are given, and the logits of the reference."""

    ids: Tensor
    positions: Tensor
    rows: Tensor
    logits: Tensor

    @property
    def chosen(self) -> Tensor:
        """The likeliest token after every sequence, [batch, 1]."""
        return self.logits[:, -1:].argmax(-1)


@dataclass
class Reference:
    """The model without a layout, run in torch."""

    weights: Mapping[str, Tensor]
    graph: Graph = field(default_factory=lambda: trace(Llama(CONFIG)))
    state: dict[str, Tensor] = field(default_factory=dict)

    def start(self, batch: int = len(LENGTHS)) -> Reference:
        """With empty caches."""
        shape = (batch, SLOTS, CONFIG.kv_heads, CONFIG.head_dim)
        self.state = {v.name: torch.zeros(shape) for v in self.graph.state}
        return self

    def step(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Step:
        given = [t.int() for t in (ids, positions, rows)]
        logits, *state = run(self.graph, given, self.weights, self.state)
        self.state = dict(zip(self.state, state, strict=True))
        return Step(ids, positions, rows, logits)


@dataclass(frozen=True)
class Script:
    """Random weights and ids, and what a reference writes after them."""

    reference: Reference
    ids: Tensor
    written: dict[bool, list[Step]] = field(default_factory=dict)

    def steps(self, left: bool) -> list[Step]:
        """Two prompts, padded on the left or right, and STEPS greedy tokens."""
        if left not in self.written:
            at, last = padded(left)
            ids = torch.where(at >= 0, self.ids[:, : max(LENGTHS)], 0)
            steps = [self.reference.start().step(ids, at, last)]
            for number in range(STEPS):
                new = torch.tensor(LENGTHS)[:, None] + number
                steps.append(self.reference.step(steps[-1].chosen, new, torch.zeros(2, 1)))
            self.written[left] = steps
        return self.written[left]


@pytest.fixture(scope="module")
def script() -> Script:
    torch.manual_seed(5)
    reference = Reference(samples(trace(Llama(CONFIG)), 5).params)
    return Script(reference, torch.randint(0, CONFIG.vocab, (len(LENGTHS), STEPS + max(LENGTHS))))


@pytest.fixture(scope="module", params=list(LIBRARIES))
def models(request: pytest.FixtureRequest, quick_options: BuildOptions,
           script: Script) -> Models:
    return Models.built(LIBRARIES[request.param], quick_options, script.reference.weights)


def check(found: Mapping[str, Tensor], expected: Tensor, what: Any) -> None:
    """All logits are those expected; the first token too where nothing is rounded."""
    first = next(logits for layout, logits in found.items() if layout.endswith("int8"))
    for layout, logits in found.items():
        rounded = layout.endswith("int8")
        assert not rounded or error_of(logits, first) <= LOGITS, (what, layout)
        error = error_of(logits, expected)
        assert error <= (ROUNDED if rounded else LOGITS), (what, layout, error)
        assert rounded or torch.equal(logits.argmax(-1), expected.argmax(-1)), (what, layout)


def padded(left: bool) -> tuple[Tensor, Tensor]:
    """Positions [batch, longest] of prompts of LENGTHS, and the last token's row [batch, 1]."""
    longest = max(LENGTHS)
    at = [[-1] * (longest - n) + list(range(n)) if left else
          list(range(n)) + [-1] * (longest - n) for n in LENGTHS]
    last = [[longest - 1] if left else [n - 1] for n in LENGTHS]
    return torch.tensor(at), torch.tensor(last)


def test_every_layout_is_there() -> None:
    layouts = [layout for library in LIBRARIES.values() for layout in library]
    assert len(set(layouts)) == len(layouts) == len(ORDERS) * 4 * 2


def test_caches_lie_as_they_are_asked_to(models: Models) -> None:
    for port in models.operator.manifest["state"]:
        if port["name"] != "block_table":
            number = int(port["name"].partition(".")[0].removeprefix("g"))
            assert str(Layout(**port["layout"])) == models.layouts[number]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_prompt_and_forty_tokens(models: Models, script: Script, left: bool) -> None:
    """Two sequences of different length: logits and greedy tokens."""
    models.start()
    for number, step in enumerate(script.steps(left)):
        check(models.step(step.ids, step.positions, step.rows), step.logits, number)


def test_a_prompt_in_chunks(models: Models, script: Script) -> None:
    ids, batch = script.ids, len(LENGTHS)
    at = torch.arange(ids.shape[1]).expand(batch, -1)
    expected = script.reference.start().step(ids, at, at).logits
    models.start()
    begin = 0
    for size in (8, 1, 17, 16, 5):
        here = slice(begin, begin + size)
        rows = torch.arange(size).expand(batch, -1)
        check(models.step(ids[:, here], at[:, here], rows), expected[:, here], here)
        begin += size


def test_sequences_that_go_on_in_turn(models: Models, script: Script) -> None:
    """A step in which one of the sequences has no token leaves its cache as it is."""
    turns, seen = (0, 1, 1, 0, 1, 0, 0), [0, 0]
    models.start()
    for turn in turns:
        at, given = torch.full((2, 3), -1), torch.zeros(2, 3)
        at[turn] = torch.arange(seen[turn], seen[turn] + 3)
        given[turn] = script.ids[turn, seen[turn]: seen[turn] + 3]
        found = models.step(given, at, torch.full((2, 1), 2))
        seen[turn] += 3
        so_far = torch.arange(seen[turn])[None]
        expected = script.reference.start(1).step(script.ids[turn: turn + 1, : seen[turn]], so_far,
                                                  so_far[:, -1:]).logits
        check({layout: logits[turn: turn + 1] for layout, logits in found.items()}, expected, seen)
