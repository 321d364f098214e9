"""Random arrivals, lengths, forks, cancels and pools that run out: every sequence gets the tokens
that it gets alone, and no block is lost or shared by mistake."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from toymodel import ToyModel, ToyPool, check_blocks

from graphdsl.errors import GraphError
from graphdsl.hf.generate import collect, generate
from graphdsl.hf.sampling import Sampling
from graphdsl.serve.engine import Engine
from graphdsl.serve.requests import Request

pytestmark = pytest.mark.usefixtures("one_thread")

RUNS = 10
"""In every test of `make fuzz`, of which 100 are drawn."""
ROOM = 1000
STARTS = ([], [3], [7, 7, 7, 7, 7, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])


@dataclass(frozen=True)
class Asked:
    """A request with all that its tokens depend on."""

    request: Request
    prompt: list[int]
    sampling: Sampling
    seed: int
    beams: int

    def alone(self, model: ToyModel) -> tuple[tuple[int, ...], str]:
        """The new ids, and why they end."""
        if self.beams > 1:
            engine = Engine(model, ROOM)
            request = engine.add(self.prompt, self.sampling, beams=self.beams)
            list(engine.run())
            return request.ids, request.reason
        steps = generate(model, [self.prompt], self.sampling,
                         generator=torch.Generator().manual_seed(self.seed))
        found = collect([self.prompt], steps)
        return found.ids[0], found.reasons[0]


@dataclass
class Run:
    """One engine under random use."""

    dice: random.Random
    model: ToyModel
    engine: Engine
    asked: list[Asked] = field(default_factory=list)
    refused: int = 0

    @staticmethod
    def of(seed: int) -> Run:
        dice = random.Random(seed)
        model = ToyModel(size=dice.choice([1, 2, 3, 4, 8]))
        blocks = -(-dice.randint(20, 90) // model.size)
        engine = Engine(model, blocks, max_batch=dice.randint(1, 6), chunk=dice.randint(1, 30))
        return Run(dice, model, engine)

    def add(self) -> None:
        dice = self.dice
        prompt = [*dice.choice(STARTS), *dice.choices(range(37), k=dice.randint(1, 20))]
        sampling = Sampling(dice.randint(0, 14), greedy=dice.random() < 0.5,
                            eos=tuple(dice.sample(range(37), dice.choice([0, 0, 1, 2]))),
                            repetition_penalty=dice.choice([1.0, 1.3]))
        beams = dice.choice([1, 1, 2, 3]) if sampling.greedy else 1
        seed = dice.randrange(1000)
        try:
            request = self.engine.add(prompt, sampling, seed=seed, beams=beams)
        except GraphError as error:
            assert "blocks" in str(error) or "rows" in str(error)  # noqa: PT017
            self.refused += 1
            return
        self.asked.append(Asked(request, prompt, sampling, seed, beams))

    def fork(self) -> None:
        able = [a for a in self.asked if not a.request.reason and a.beams == 1]
        if not able:
            return
        asked, seed = self.dice.choice(able), self.dice.randrange(1000)
        made = self.engine.fork(asked.request, seed)
        sofar = [*asked.request.prompt, *asked.request.ids]
        left = asked.sampling.max_new_tokens + len(asked.prompt) - len(sofar)
        self.asked.append(Asked(made, sofar, replace(asked.sampling, max_new_tokens=left), seed,
                                1))

    def cancel(self) -> None:
        if self.asked:
            self.engine.cancel(self.dice.choice(self.asked).request)

    def turn(self) -> None:
        for chance, act in ((0.5, self.add), (0.15, self.fork), (0.08, self.cancel)):
            if self.dice.random() < chance:
                act()
                check_blocks(self.engine)
        self.engine.step()
        check_blocks(self.engine)

    def check(self, asked: Asked) -> None:
        ids, reason = asked.alone(self.model)
        # A fork has the ids of before in its own; its prompt here has them too.
        found = (*asked.request.prompt, *asked.request.ids)
        if asked.request.reason == "cancelled":
            assert found[len(asked.prompt):] == ids[:max(len(found) - len(asked.prompt), 0)]
            return
        assert found == (*asked.prompt, *ids)
        assert asked.request.reason == reason


def counted(seed: int) -> Counter[str]:
    """Checks one run; gives what happened in it."""
    run = Run.of(seed)
    for _ in range(run.dice.randint(5, 25)):
        run.turn()
    steps = 0
    while run.engine.busy:
        run.engine.step()
        check_blocks(run.engine)
        steps += 1
        assert steps < 5000, "it does not come to an end"
    assert run.engine.blocks.free == run.engine.blocks.count
    for asked in run.asked:
        run.check(asked)
    assert isinstance(run.engine.pool, ToyPool)
    scheduler = run.engine.scheduler
    return Counter({"put back": scheduler.put_back, "found": scheduler.found,
                    "copied": run.engine.pool.copied, "refused": run.refused,
                    "asked": len(run.asked), **Counter(a.request.reason for a in run.asked)})


def test_sample() -> None:
    total: Counter[str] = Counter()
    for seed in range(30):
        total += counted(seed)
    for what in ("put back", "found", "copied", "refused", "cancelled", "eos", "length"):
        assert total[what] >= 10, total


@pytest.mark.fuzz
def test_random_runs(fuzz_seed: int, record_property: Callable[[str, int], None]) -> None:
    for seed in range(100 + fuzz_seed * RUNS, 100 + fuzz_seed * RUNS + RUNS):
        counted(seed)
    record_property("engines", RUNS)
