"""Random graphs for the passes and the backends: kernel soup, plain maths, Layers and Models."""

from __future__ import annotations

import random

from random_layers import random_layer, random_model
from random_rules import Example, example_of
from random_soup import STEPS, soup
from random_spelled import SPELLED

from graphdsl.backend import Target
from graphdsl.ir import Graph
from graphdsl.passes.catalogue import FUSIONS, groups
from graphdsl.passes.rules import FusionRule, GroupRule

DTYPES = ("f32", "f32", "bf16", "f16")
KINDS = ("soup", "soup", "plain", "plain", "rules", "rules", "layer", "layer", "layer", "model")
"""The kinds of random graphs, in turn."""


def kernel_soup(seed: int, dtype: str = "f32", most: int = 22) -> Graph:
    """A graph of up to `most` random steps with one to three outputs."""
    return soup(f"soup{seed}", random.Random(seed), dtype, STEPS, most)


def plain_soup(seed: int, dtype: str = "f32", most: int = 12) -> Graph:
    """A soup whose norms, activations, rope and attention are written as plain maths."""
    steps = (*SPELLED, *((step, 0.3 * weight) for step, weight in STEPS))
    return soup(f"plain{seed}", random.Random(seed), dtype, steps, most)


def rule_soup(seed: int, dtype: str = "f32", most: int = 8) -> Graph:
    """A soup in which some rules find what they look for, one of them for certain."""
    known = examples()
    steps = ((example_of(known[seed % len(known)]), 12.0),
             *((example_of(rule), 12.0 / len(known)) for rule in known),
             *((step, 0.2 * weight) for step, weight in STEPS))
    return soup(f"rules{seed}", random.Random(seed), dtype, steps, most)


def examples() -> list[Example]:
    """The rules of the catalogue that say what they look for."""
    rules = (*FUSIONS, *groups(Target("t", epilogue_matmuls=1)))
    return [rule for rule in rules if isinstance(rule, FusionRule | GroupRule)]


MAKERS = {"soup": kernel_soup, "plain": plain_soup, "rules": rule_soup, "layer": random_layer,
          "model": random_model}


def random_graph(seed: int) -> Graph:
    """Graph number `seed` of all kinds and dtypes."""
    turn, place = divmod(seed, len(KINDS))
    kind = KINDS[place]
    number = turn * KINDS.count(kind) + KINDS[:place].count(kind)
    return MAKERS[kind](number, random.Random(seed).choice(DTYPES))


__all__ = ["KINDS", "kernel_soup", "plain_soup", "random_graph", "random_layer", "random_model",
           "rule_soup"]
