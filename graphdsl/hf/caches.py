"""The caches of transformers as the state of a built layer."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphdsl.borders.kept import Kept
from graphdsl.errors import GraphError
from graphdsl.hf.extras import need
from graphdsl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CACHES = ("Cache", "DynamicCache", "StaticCache")
HINT = "caches that are taken: DynamicCache and StaticCache, not offloaded, or none"


@dataclass(frozen=True)
class Step:
    """Where one call of a layer finds its keys and values (`state`), each [batch, heads, slots,
    dim], and puts new ones.

    `slot` is that of the first new token. Column 0 of the mask that transformers makes is slot
    `left`. `finish` tells the cache of transformers what it holds after the call.
    """

    state: tuple[Tensor, ...]
    slot: int
    left: int = 0
    finish: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Rows:
    """New rows: `like` is empty, [batch, heads, 0, dim], and there are `tokens` of them."""

    like: Tensor
    tokens: int

    def empty(self) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer that has only these."""
        batch, heads, _, dim = self.like.shape
        made = torch.zeros((2, batch, heads, self.tokens, dim), dtype=self.like.dtype)
        return made[0], made[1]


@dataclass(frozen=True)
class LayerCache:
    """What one replaced layer keeps for every cache of transformers that it meets, as long as that
    lives. `copied` is shared with the other layers of the model."""

    index: int
    reserve: int
    copied: Counter[str]
    kept: weakref.WeakKeyDictionary[Any, Kept] = field(default_factory=weakref.WeakKeyDictionary)

    def begin(self, cache: Any, rows: Rows) -> Step:
        """Where the layer's next rows go. Raises GraphError for caches that are laid out or
        updated in a way that is not known here."""
        if cache is None:
            return Step(rows.empty(), 0)
        layer = cache_layer(cache, self.index)
        begin = _BEGINNINGS[type(layer).__name__]
        if not layer.is_initialized:
            layer.lazy_initialization(rows.like, rows.like)
        step: Step = begin(self, layer, rows)
        return step

    def _kept(self, layer: Any) -> Kept:
        if layer not in self.kept:
            self.kept[layer] = Kept("bnsd", self.reserve, self.copied)
        return self.kept[layer]

    def _dynamic(self, layer: Any, rows: Rows) -> Step:
        """A cache that grows: it is given views of a buffer."""
        kept, held = self._kept(layer), _held(layer, rows)
        start, count = kept.hold(held, rows.tokens), held[0].shape[2]

        def finish() -> None:
            layer.keys, layer.values = kept.view(start, count + rows.tokens)

        return Step(kept.buffers, start + count, left=start, finish=finish)

    def _sliding(self, layer: Any, rows: Rows) -> Step:
        """A cache of the last window - 1 rows, which are views of a buffer's."""
        kept, held, past = self._kept(layer), _held(layer, rows), layer.cumulative_length
        _, offset = layer.get_mask_sizes(rows.tokens)
        start, count = kept.hold(held, rows.tokens, window=True), held[0].shape[2]
        every = count + rows.tokens
        left = every if layer.record_past else min(every, layer.sliding_window - 1)

        def finish() -> None:
            layer.cumulative_length = past + rows.tokens
            layer.keys, layer.values = kept.view(start + every - left, left)

        slot = start + count
        return Step(kept.buffers, slot, left=slot + offset - past, finish=finish)

    def _static(self, layer: Any, rows: Rows) -> Step:
        """A cache of fixed size, written where it is."""
        slot = int(layer.cumulative_length)
        _check_room(slot + rows.tokens, layer.max_cache_len)

        def finish() -> None:
            layer.cumulative_length.add_(rows.tokens)

        return Step((layer.keys, layer.values), slot, finish=finish)

    def _static_sliding(self, layer: Any, rows: Rows) -> Step:
        """A cache of `window` rows, the last ones once it is full: they are views of a buffer's."""
        kept, past, size = self._kept(layer), layer.cumulative_length_int, layer.max_cache_len
        _, offset = layer.get_mask_sizes(rows.tokens)
        count = min(past, size)
        held = tuple(t[:, :, :count] for t in (layer.keys, layer.values))
        start = kept.hold(held, max(rows.tokens, size - count), window=True)
        fits = past + rows.tokens <= size

        def finish() -> None:
            layer.cumulative_length_int = past + rows.tokens
            if fits:  # as transformers counts: no further once the window is full
                layer.cumulative_length.add_(rows.tokens)
            last = start if fits else start + count + rows.tokens - size
            layer.keys, layer.values = kept.view(last, size)

        slot = start + count
        return Step(kept.buffers, slot, left=slot + offset - past, finish=finish)


def _held(layer: Any, rows: Rows) -> tuple[Tensor, Tensor]:
    """The keys and values of a layer of transformers; before its first row they have no shape."""
    if not layer.keys.numel():
        return rows.like, rows.like
    return layer.keys, layer.values


def _check_room(tokens: int, size: int) -> None:
    if tokens > size:
        raise GraphError(f"the StaticCache has {size} slots, and {tokens} tokens are to be held",
                         hint="make it with a larger max_cache_len")


def cache_layer(cache: Any, index: int) -> Any:
    """The part of a cache of transformers that belongs to layer `index`.

    Raises GraphError, naming the class, for caches that are not taken.
    """
    module = need("transformers.cache_utils")
    known = type(cache) in [getattr(module, name) for name in CACHES]
    if not known or cache.offloading:
        how = "an offloaded " if known else "a "
        raise GraphError(f"past_key_values is {how}{type(cache).__name__}", hint=HINT)
    while cache.layer_class_to_replicate is not None and len(cache.layers) <= index:
        cache.layers.append(cache.layer_class_to_replicate())
    if index >= len(cache.layers):
        raise GraphError(f"past_key_values has {len(cache.layers)} layers, and this is layer "
                         f"{index}", hint="make it with the config of this model")
    layer = cache.layers[index]
    if type(layer) not in [getattr(module, name) for name in _BEGINNINGS]:
        raise GraphError(f"past_key_values has a {type(layer).__name__} for layer {index}",
                         hint=HINT)
    return layer


_BEGINNINGS = {
    "DynamicLayer": LayerCache._dynamic,
    "DynamicSlidingWindowLayer": LayerCache._sliding,
    "StaticLayer": LayerCache._static,
    "StaticSlidingWindowLayer": LayerCache._static_sliding,
}
"""How a step begins in each kind of layer that a cache of transformers has."""
