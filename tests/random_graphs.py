"""Random graphs for the passes and the backends: kernel soup, plain maths, Layers and Models."""

from __future__ import annotations

import random
from typing import Any

from random_layers import random_layer, random_model
from random_rules import Example, example_of
from random_soup import STEPS, soup
from random_spelled import SPELLED

from graphdsl.ir import Graph
from graphdsl.passes.base import Target
from graphdsl.passes.catalogue import FUSIONS, groups

DTYPES = ("f32", "f32", "bf16", "f16")
KINDS = ("soup", "plain", "rules", "layer", "plain", "rules", "layer", "soup", "rules", "model")
"""The kinds of random graphs, in turn."""
EXAMPLES = 6
"""How many rules a soup is made for."""


def kernel_soup(seed: int, dtype: str = "f32", most: int = 22) -> Graph:
    """A graph of up to `most` random steps with one to three outputs."""
    return soup(f"soup{seed}", random.Random(seed), dtype, STEPS, most)


def plain_soup(seed: int, dtype: str = "f32", most: int = 12) -> Graph:
    """A soup whose norms, activations, rope and attention are written as plain maths."""
    steps = (*SPELLED, *((step, 0.3 * weight) for step, weight in STEPS))
    return soup(f"plain{seed}", random.Random(seed), dtype, steps, most)


def rule_soup(seed: int, dtype: str = "f32", most: int = 6) -> Graph:
    """A soup in which rules find what they look for: EXAMPLES of them, all in turn."""
    known = [example_of(rule) for rule in examples()]
    certain = [known[(EXAMPLES * seed + i) % len(known)] for i in range(EXAMPLES)]
    return soup(f"rules{seed}", random.Random(seed), dtype, STEPS, most, certain)


def examples() -> list[Example]:
    """The rules of the catalogue that say what they look for."""
    rules: tuple[Any, ...] = (*FUSIONS, *groups(Target("t")))
    return [rule for rule in rules if hasattr(rule, "before")]


MAKERS = {"soup": kernel_soup, "plain": plain_soup, "rules": rule_soup, "layer": random_layer,
          "model": random_model}


def random_graph(seed: int) -> Graph:
    """Graph number `seed` of all kinds and dtypes."""
    return built_graph(seed, random.Random(seed).choice(DTYPES))


def built_graph(seed: int, dtype: str) -> Graph:
    """Graph number `seed` of all kinds, of this dtype."""
    turn, place = divmod(seed, len(KINDS))
    kind = KINDS[place]
    return MAKERS[kind](turn * KINDS.count(kind) + KINDS[:place].count(kind), dtype)


__all__ = ["KINDS", "built_graph", "kernel_soup", "plain_soup", "random_graph", "random_layer",
           "random_model", "rule_soup"]
