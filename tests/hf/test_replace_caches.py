"""Caches of transformers under built layers: what is in them, and what is copied."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from replacecase import (
    CONFIGS,
    HEAD_DIM,
    KV_HEADS,
    NEW,
    PROMPT,
    STATIC,
    Pair,
    padded,
    pair_of,
    prompts,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError

pytestmark = pytest.mark.usefixtures("one_thread")

AMPLE = 64
FAMILIES = ["gemma3", *(pytest.param(each, marks=pytest.mark.full)
                        for each in ("llama", "mistral"))]
COPYING = ("cat", "copy_", "index_select", "clone", "contiguous", "index", "index_copy_", "roll",
           "repeat_interleave", "repeat", "_to_copy", "gather", "where", "index_put_", "stack",
           "constant_pad_nd", "masked_fill", "slice_scatter")


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes that each kind of torch call has copied into anything with the axes of a cache."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in COPYING and isinstance(result, Tensor) and _is_cache(result):
            self.bytes[name] += result.numel() * result.element_size()
        return result


def _is_cache(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.shape[1] == KV_HEADS and tensor.shape[3] == HEAD_DIM


def copies(model: Any, **options: Any) -> Counter[str]:
    found = Copies()
    with found:
        model.generate(**{"max_new_tokens": NEW, "do_sample": False, **options})
    return found.bytes


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(family: str, options: BuildOptions) -> Callable[[int], Pair]:
    return lambda reserve: pair_of(CONFIGS[family](), options, reserve)


@pytest.mark.parametrize("mode", [{}, STATIC], ids=["dynamic", "static"])
def test_greedy_steps_copy_no_cache(make: Callable[[int], Pair], mode: dict[str, Any]) -> None:
    pair = make(AMPLE)
    for inputs in ({"input_ids": prompts()}, padded()):
        assert copies(pair.theirs, **inputs, **mode).total() > 0
        assert not copies(pair.ours, **inputs, **mode)
    assert pair.replaced.copied_bytes == {}


def test_what_is_copied_is_counted(make: Callable[[int], Pair], family: str) -> None:
    pair = make(4)
    pair.replaced.copied.clear()
    found = copies(pair.ours, **padded())
    causes = {"llama": {"growth"}, "mistral": {"window"}, "gemma3": {"growth", "window"}}
    assert pair.replaced.copied_bytes.keys() == causes[family]
    assert found == Counter(copy_=pair.replaced.copied.total())


@pytest.mark.parametrize("mode", [{}, STATIC], ids=["dynamic", "static"])
def test_beams_copy_what_is_reordered(make: Callable[[int], Pair], mode: dict[str, Any]) -> None:
    pair = make(AMPLE)
    found = copies(pair.ours, **padded(), num_beams=3, **mode)
    own = pair.replaced.copied_bytes
    assert own.keys() <= {"reorder"}
    assert found["copy_"] == sum(own.values())
    assert found.keys() <= {"copy_", "index_select"}


def same(found: Any, wanted: Any) -> None:
    """Both caches hold the same rows."""
    assert found.get_seq_length() == wanted.get_seq_length()
    for ours, theirs in zip(found.layers, wanted.layers, strict=True):
        assert type(ours) is type(theirs)
        assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)
        assert int(ours.cumulative_length if ours.is_compileable else 0) == int(
            theirs.cumulative_length if theirs.is_compileable else 0)
        for a, b in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def run_both(pair: Pair, cache: Callable[[], Any], steps: list[Any]) -> None:
    """The same steps with a cache each: numbers are tokens of a forward, functions change the
    cache; after each step both have to hold the same."""
    caches = [cache(), cache()]
    for number, step in enumerate(steps):
        if callable(step):
            for one in caches:
                step(one)
            continue
        first = caches[0].layers[:1]
        batch = first[0].keys.shape[0] if first and first[0].is_initialized else 2
        given = prompts(batch, len(steps) * step)[:, number * step : (number + 1) * step]
        wanted, found = (model(given, past_key_values=one, use_cache=True).logits
                         for model, one in zip((pair.theirs, pair.ours), caches, strict=True))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        same(caches[1], caches[0])


@torch.no_grad()
@pytest.mark.parametrize("reserve", [1, 3, AMPLE])
def test_rows_are_those_of_transformers(make: Callable[[int], Pair], reserve: int) -> None:
    pair = make(reserve)
    config = pair.theirs.config

    def dynamic() -> Any:
        return DynamicCache(config=config)

    run_both(pair, dynamic, [3, 1, 1, 1, 1, 4, 1, 9, 1, 1])
    run_both(pair, dynamic, [12, 1, 1, lambda c: c.reset(), 2, 1])
    run_both(pair, dynamic, [4, lambda c: c.batch_repeat_interleave(2), 2, 1,
                             lambda c: c.batch_select_indices(torch.tensor([0, 3])), 1, 1])
    run_both(pair, dynamic, [4, lambda c: c.reorder_cache(torch.tensor([1, 0])), 5, 1])
    run_both(pair, DynamicCache, [3, 1, 9, 1])
    for length in (26, 4):
        run_both(pair, lambda: StaticCache(config=config, max_cache_len=30), [
            3, 1, 1, 1, 1, 4, 1, 9, 1, 1, lambda c: c.reset(), length, 2, 1])


def recording(cache: Any) -> None:
    cache.activate_past_recording()


@torch.no_grad()
def test_caches_are_cropped(make: Callable[[int], Pair]) -> None:
    pair = make(3)
    steps = [4, recording, lambda c: c.crop(0), 3, lambda c: c.crop(-2), 5,
             lambda c: c.crop(-1), 1, lambda c: c.crop(0), 4, lambda c: c.crop(-3), 1]
    run_both(pair, lambda: DynamicCache(config=pair.theirs.config), steps)


def drawn_steps(dice: random.Random, static: bool) -> list[Any]:
    """Forwards of a few tokens, and what a caller may do to a cache in between."""
    steps: list[Any] = [dice.randint(1, 9)]
    recorded = not static and dice.random() < 0.5
    if recorded:
        steps = [recording, steps[0]]
    for _ in range(dice.randint(3, 7)):
        changes = ["none", "none", "reorder"]
        changes += [] if static else ["repeat", "select"]
        change = dice.choice(changes)
        if change == "reorder":
            steps.append(lambda c: c.reorder_cache(torch.arange(_batch(c)).flip(0)))
        if change == "repeat":
            steps.append(lambda c: c.batch_repeat_interleave(3 if _batch(c) == 1 else 1))
        if change == "select":
            steps.append(lambda c: c.batch_select_indices(torch.tensor([0])))
        steps.append(dice.choice([1, 1, 1, 2, 5, 8]))
        if recorded:
            removed = -dice.randint(0, steps[-1] - 1)
            steps.append(lambda c, removed=removed: c.crop(removed))
    return steps


def _batch(cache: Any) -> int:
    return int(cache.layers[0].keys.shape[0])


@torch.no_grad()
@pytest.mark.fuzz
def test_random_steps(fuzz_seed: int, options: BuildOptions) -> None:
    dice = random.Random(fuzz_seed)
    family = dice.choice(["llama", "mistral", "gemma3"])
    pair = pair_of(CONFIGS[family](), options, dice.choice([1, 2, 5, AMPLE]))
    config, static = pair.theirs.config, dice.random() < 0.3
    pair.use(dice.choice(["sdpa", "eager"]))

    def cache() -> Any:
        return StaticCache(config=config, max_cache_len=80) if static else DynamicCache(
            config=config)

    run_both(pair, cache, drawn_steps(dice, static))


def test_prompt_lookup(make: Callable[[int], Pair]) -> None:
    pair = make(8)
    ids = prompts().repeat(1, 3)
    wanted, found = pair.generate(input_ids=ids, prompt_lookup_num_tokens=3)
    assert torch.equal(wanted, found)


def test_a_cache_of_the_inference_mode_goes_on_without(make: Callable[[int], Pair]) -> None:
    pair = make(AMPLE)
    cache = DynamicCache(config=pair.ours.config)
    ids = prompts(2, 9)
    with torch.inference_mode():
        pair.ours(ids[:, :PROMPT], past_key_values=cache)
    with torch.no_grad():
        pair.ours(ids[:, PROMPT:8], past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        found = pair.ours(ids[:, 8:], past_key_values=cache).logits[0, -1]
        wanted = pair.theirs(torch.cat([ids[1:, :8], ids[:1, 8:]], 1)).logits[0, -1]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_copied_cache_goes_its_own_way(make: Callable[[int], Pair]) -> None:
    pair = make(AMPLE)
    cache = DynamicCache(config=pair.ours.config)
    ids = prompts(1, 20)
    pair.ours(ids[:, :PROMPT], past_key_values=cache)
    other = copy.deepcopy(cache)
    pair.ours(ids[:, PROMPT:9], past_key_values=cache)
    kept = [layer.keys.clone() for layer in cache.layers]
    pair.ours(ids[:, 12:], past_key_values=other)
    assert all(torch.equal(a, layer.keys) for a, layer in zip(kept, cache.layers, strict=True))


@torch.no_grad()
def test_a_static_cache_that_is_full_is_refused(options: BuildOptions) -> None:
    pair = pair_of(CONFIGS["llama"](), options)
    cache = StaticCache(config=pair.ours.config, max_cache_len=8)
    pair.ours(prompts(1, 6), past_key_values=cache)
    with pytest.raises(GraphError, match="has 8 slots, and 9 tokens"):
        pair.ours(prompts(1, 3), past_key_values=cache)
    assert int(cache.get_seq_length()) == 6
