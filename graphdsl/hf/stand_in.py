"""What stands in the place of a decoder layer of transformers, and what its layers share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphdsl.borders.masks import with_mask
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.hf.caches import LayerCache, Rows
from graphdsl.ir import Graph
from graphdsl.lazy import torch
from graphdsl.runtime.operator import Operator

if TYPE_CHECKING:
    from torch import Tensor

UNMASKED, SEEN, ADDED = "none", "bool", "f32"
"""Kinds of masks: none, bool (True: seen), or added to the scores."""
COLUMNS = 64
"""Masks are padded to a multiple of so many keys, so that few plans serve all lengths."""
OWN = ("forward", "_old_forward", "_hf_hook")
"""Attributes of a layer that call the layer itself."""


@dataclass(frozen=True)
class LayerBuild:
    """The operators of one kind of layer, without weights, by the kind of mask they take; each is
    built when it is first needed."""

    graph: Graph
    options: BuildOptions
    made: dict[str, Operator] = field(default_factory=dict)

    def operator(self, kind: str) -> Operator:
        """Raises GraphError or ToolError as a build does."""
        if kind not in self.made:
            graph = self.graph if kind == UNMASKED else with_mask(self.graph, kind)
            self.made[kind] = Operator(build_graph(graph, self.options).path)
        return self.made[kind]


@dataclass(frozen=True)
class LayerOperators:
    """The operators of one layer, by the kind of mask; all read the same packed weights."""

    build: LayerBuild
    made: dict[str, Operator] = field(default_factory=dict)

    def bind(self, kind: str, weights: Mapping[str, Tensor]) -> None:
        """Packs the weights. Raises GraphError as Operator.bind does."""
        self.made[kind] = self.build.operator(kind).with_weights(weights)

    def operator(self, kind: str) -> Operator:
        """The operator for masks of this kind."""
        if kind not in self.made:
            first, bare = next(iter(self.made.values())), self.build.operator(kind)
            assert bare.manifest["params"] == first.manifest["params"], "a mask changes no param"
            self.made[kind] = bare.with_packed(first.weights)
        return self.made[kind]


@dataclass(frozen=True)
class Shared:
    """What all layers of a model take alike in one forward, converted once: entries hold what they
    were made of, so that its id stays its own. `clear` begins the next forward."""

    made: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict)

    def clear(self) -> None:
        self.made.clear()

    def _once(self, key: tuple[Any, ...], source: Any, make: Callable[[], Any]) -> Any:
        found = self.made.get(key)
        if found is None:
            found = self.made[key] = (source, make())
        return found[1]

    def positions(self, batch: int, slot: int, tokens: int) -> Tensor:
        """The slots of new tokens, the first of them `slot`: i32 [batch, tokens]."""
        def make() -> Tensor:
            return torch.arange(slot, slot + tokens, dtype=torch.int32).repeat(batch, 1)

        found: Tensor = self._once(("positions", batch, slot, tokens), None, make)
        return found

    def angle(self, angle: Tensor, batch: int) -> Tensor:
        """One of transformers' (cos, sin), [1 or batch, tokens, rotary], where the second half is
        the first again: f32 [batch, tokens, rotary / 2]."""
        def make() -> Tensor:
            half = angle[..., : angle.shape[-1] // 2].float()
            return half.expand(batch, -1, -1).contiguous()

        found: Tensor = self._once(("angle", id(angle), batch), angle, make)
        return found

    def mask(self, mask: Any, batch: int, tokens: int, left: int,
             slots: int) -> tuple[str, Tensor | None]:
        """The kind of a mask of transformers and, [batch, 1, tokens, keys], the mask itself with
        `left` unseen keys before it. At least the first `slots` slots are to be spoken of.

        Raises GraphError for what is not a 4-D bool or floating mask of this size.
        """
        if mask is None:
            return UNMASKED, None
        _check_mask(mask, batch, tokens, slots - left)
        kind = SEEN if mask.dtype == torch.bool else ADDED

        def make() -> Tensor:
            wide = mask if kind == SEEN else mask.float()
            right = -(left + wide.shape[3]) % COLUMNS
            unseen = False if kind == SEEN else -torch.inf
            padded = torch.nn.functional.pad(wide, (left, right), value=unseen)
            return padded.expand(batch, -1, -1, -1).contiguous()

        return kind, self._once(("mask", id(mask), batch, left), mask, make)


def _check_mask(mask: Any, batch: int, tokens: int, keys: int) -> None:
    if not isinstance(mask, torch.Tensor):
        raise GraphError(f"attention_mask is a {type(mask).__name__}, wanted a tensor or None",
                         hint='model.set_attn_implementation("sdpa")')
    fits = (mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1] == 1
            and mask.shape[2] == tokens and mask.shape[3] >= keys)
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise GraphError(f"attention_mask of a layer is {mask.dtype} {list(mask.shape)}, wanted "
                         f"bool or floating [{batch}, 1, {tokens}, {keys} or more]",
                         hint='model.set_attn_implementation("sdpa") makes such masks')


@dataclass(frozen=True)
class Inside:
    """What a stand-in runs. `heads` and `dim` are those of its cache, `dropout` is the greatest
    probability with which the original drops anything in training."""

    operators: LayerOperators
    cache: LayerCache
    shared: Shared
    heads: int
    dim: int
    dropout: float

    def __call__(self, given: Mapping[str, Any]) -> Tensor:
        """The layer's result for the arguments of transformers' forward, by name.

        Raises GraphError for caches, masks and inputs that it does not take.
        """
        if given.get("encoder_hidden_states") is not None:
            raise GraphError("encoder_hidden_states are given to a layer without cross-attention")
        x = given["hidden_states"].contiguous()
        batch, tokens = x.shape[:2]
        rows = Rows(x.new_empty(batch, self.heads, 0, self.dim), tokens)
        step = self.cache.begin(given.get("past_key_values"), rows)
        kind, mask = self.shared.mask(given.get("attention_mask"), batch, tokens, step.left,
                                      step.slot + tokens)
        operator = self.operators.operator(kind)
        inputs = {"x": x, "positions": self.shared.positions(batch, step.slot, tokens),
                  "mask": mask}
        if given.get("position_embeddings") is not None:
            cos, sin = given["position_embeddings"]
            inputs |= {"cos": self.shared.angle(cos, batch), "sin": self.shared.angle(sin, batch)}
        y: Tensor = operator(*(inputs[port.name] for port in operator.inputs),
                             state=dict(zip(("kv.k", "kv.v"), step.state, strict=True)))
        step.finish()
        return y


def stand_in(layer: Any, inside: Inside) -> Any:
    """A module of a subclass of `layer`'s class (hooks look for that) with its plain attributes
    and hooks, without its weights, which runs `inside`."""
    kind = type(layer)
    names = tuple(inspect.signature(kind.forward).parameters)[1:]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.training and inside.dropout:
            raise GraphError(f"{kind.__name__} is in training mode with dropout {inside.dropout}",
                             hint="model.eval()")
        return inside({**dict(zip(names, args, strict=False)), **kwargs})

    made: Any = type(f"Built{kind.__name__}", (kind,), {
        "forward": forward, "inside": inside,
        "_save_to_state_dict": _no_weights, "_load_from_state_dict": _no_weights})
    module = made.__new__(made)
    attributes = {k: v for k, v in vars(layer).items() if k not in OWN}
    vars(module).update(attributes, _modules={}, _parameters={}, _buffers={})
    return module


def _no_weights(module: Any, *args: Any) -> None:
    """Instead of a checkpoint that silently lacks the layers."""
    raise GraphError("replaced layers have no weights to save or to load",
                     hint="state_dict, save_pretrained and load_state_dict before replace_layers")
