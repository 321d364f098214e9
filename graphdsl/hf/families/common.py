"""What several families write in the same way."""

from __future__ import annotations

from collections.abc import Callable

from graphdsl.errors import GraphError
from graphdsl.hf.family import MOST_LAYERS, want
from graphdsl.hf.fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"


def read_head_dim(fields: Fields, default: int | None = None) -> int:
    """head_dim, or where it is missing the default, or hidden_size shared among the heads."""
    if fields.has("head_dim") or default is not None:
        return fields.integer("head_dim", default)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if heads < 1 or hidden % heads:
        raise GraphError(
            f"{fields.path}: 'head_dim' is missing and 'hidden_size' {hidden} is not a multiple of"
            f" 'num_attention_heads' {heads}"
        )
    return hidden // heads


def read_window(fields: Fields, default: int) -> int:
    """How many tokens a token sees, 0 for all of them: what a null stands for, while a missing
    entry is `default`."""
    if "sliding_window" not in fields.values:
        return default
    window = fields.integer("sliding_window", 0)
    good = window >= (1 if fields.has("sliding_window") else 0)
    want(good, str(fields.path), f"'sliding_window' is {window}", "at least 1, or null")
    return window


def sliding_layers(fields: Fields, slides: Callable[[int], bool]) -> tuple[int, ...]:
    """The layers with a window: those that layer_types calls so or, where it is missing, those that
    `slides` names. Raises GraphError for layers of a kind other than full and sliding."""
    layers, file = fields.integer("num_hidden_layers"), str(fields.path)
    want(layers <= MOST_LAYERS, file, f"layers is {layers}", f"at most {MOST_LAYERS}")
    if not fields.has("layer_types"):
        return tuple(filter(slides, range(layers)))
    kinds = fields.texts("layer_types")
    want(len(kinds) == layers, file, f"'layer_types' has {len(kinds)} entries", f"{layers}")
    for kind in kinds:
        want(kind in (FULL, SLIDING), file, f"a layer type is {kind!r}", f"{SLIDING} or {FULL}")
    return tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
