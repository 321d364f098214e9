"""Built operators in the place of a transformers model's decoder layers.

Embeddings, the last norm, the head and `generate` stay those of transformers; caches too, which the
operators write where they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphdsl.builder import BuildOptions, check_options
from graphdsl.errors import GraphError
from graphdsl.hf.caches import LayerCache
from graphdsl.hf.config import read_family
from graphdsl.hf.extras import need
from graphdsl.hf.family import Family
from graphdsl.hf.fields import Fields
from graphdsl.hf.stand_in import (
    ADDED,
    UNMASKED,
    Inside,
    LayerBuild,
    LayerOperators,
    Shared,
    stand_in,
)
from graphdsl.ir import Graph
from graphdsl.layer import Layer, trace
from graphdsl.lazy import torch, torch_dtype
from graphdsl.printer import text

if TYPE_CHECKING:
    from torch import Tensor

RESERVE = 1024
ORDER = "bnsd"
REFUSED = {"output_attentions": "attention weights are never made",
           "output_router_logits": "what routers say stays inside of the layers"}
"""What a model may be asked for and built layers do not give."""
EXPERTS = "mlp.experts."
NOT_IN_TRANSFORMERS = ("chatglm",)


@dataclass(frozen=True)
class Replaced:
    """What `replace_layers` did. `layers` are the modules that are in the model now, `copied`
    counts the bytes of caches that they have copied, by cause: "reorder" (transformers gave new
    tensors, as after every step of a beam search), "growth" (a buffer was full) and "window" (rows
    that a sliding window still sees went back to the front of a full buffer)."""

    layers: tuple[Any, ...]
    copied: Counter[str]

    @property
    def copied_bytes(self) -> dict[str, int]:
        return dict(self.copied)


def replace_layers(model: Any, options: BuildOptions, reserve: int = RESERVE) -> Replaced:
    """Swaps the decoder layers of `model` for built operators; see graphdsl.api.replace_layers."""
    family = _family(model)
    base, modules = _modules(model, family)
    _check(model, modules, reserve)
    options = dataclasses.replace(options, dtype=_dtype(model))
    _check_backend(options)
    builds: dict[str, LayerBuild] = {}
    shared, copied = Shared(), Counter[str]()
    stand_ins = []
    for index, layer in enumerate(family.model(family.config).layers):  # type: ignore[attr-defined]
        cache = LayerCache(index, reserve, copied)
        operators = _operators(layer, builds, options)
        operators.bind(_first_kind(model), _weights(modules[index], _names(family, index)))
        inside = Inside(operators, cache, shared, layer.kv.kv_heads, layer.kv.head_dim,
                        _dropout(modules[index]))
        stand_ins.append(stand_in(modules[index], inside))
    for index, module in enumerate(stand_ins):
        modules[index] = module
    base.register_forward_pre_hook(_before(shared), with_kwargs=True)
    return Replaced(tuple(stand_ins), copied)


def _check_backend(options: BuildOptions) -> None:
    """Raises GraphError for a backend that cannot run where transformers keeps its caches."""
    target = check_options(options).target
    if ORDER not in target.kv_orders:
        raise GraphError(f"replace_layers: transformers keeps its caches as {ORDER}, and the "
                         f"{target.name} backend takes {', '.join(sorted(target.kv_orders))}",
                         hint='backend="cpu"; a graphdsl.borders.atb.AtbLayer runs on both')


def _operators(layer: Layer, builds: dict[str, LayerBuild],
               options: BuildOptions) -> LayerOperators:
    """The operators of a Layer; those that are traced to the same graph share a build."""
    graph = _pinned(layer, options.dtype)
    return LayerOperators(builds.setdefault(text(graph), LayerBuild(graph, options)))


def _pinned(layer: Any, dtype: str) -> Graph:
    """The graph of a Layer whose cache lies as that of transformers does."""
    layer.kv = dataclasses.replace(layer.kv, layout=ORDER)
    return trace(layer, dtype)


def _family(model: Any) -> Family:
    """The family of a model of transformers. Raises GraphError for those that are not known."""
    if not isinstance(model, need("transformers").PreTrainedModel):
        raise GraphError(f"replace_layers: this is a {type(model).__name__}, wanted a model of "
                         "transformers", hint="AutoModelForCausalLM.from_pretrained(...)")
    config = model.config
    fields = Fields(Path(type(config).__name__), json.loads(config.to_json_string(use_diff=False)))
    for kind in NOT_IN_TRANSFORMERS:
        if fields.values.get("model_type") == kind:
            raise GraphError(f"{fields.path}: model_type {kind!r} has layers of its own code, and "
                             "not of transformers", hint="graphdsl.load_model takes it")
    fields.only("is_causal", True, "causal models")
    return read_family(fields)


def _modules(model: Any, family: Family) -> tuple[Any, Any]:
    """The module that calls the decoder layers, and the list that these are in."""
    path = next(iter(_full_names(family, 0).values())).partition(".0.")[0]
    base, name = model.base_model, path.rpartition(".")[2]
    modules = getattr(base, name, None)
    if not isinstance(modules, torch.nn.ModuleList) or len(modules) != family.config.layers:
        raise GraphError(f"{type(model).__name__} has no list {name!r} of {family.config.layers} "
                         "layers", hint="AutoModelForCausalLM makes a model of the right class")
    return base, modules


def _full_names(family: Family, index: int) -> dict[str, str]:
    """The names on disk of a layer's params by ours; that of stacked params is ours."""
    prefix = f"layers.{index}."
    return {ours.removeprefix(prefix): theirs if isinstance(theirs, str) else theirs[0]
            for ours, theirs in family.names.items() if ours.startswith(prefix)}


def _names(family: Family, index: int) -> dict[str, str]:
    """The names in memory, below a layer, of its params by ours. Experts, which are apart on disk,
    are split by `_split_experts` into params that are called as ours."""
    apart = {ours.partition(f"layers.{index}.")[2] for ours, theirs in family.names.items()
             if not isinstance(theirs, str)}
    found = {ours: theirs.partition(f".{index}.")[2]
             for ours, theirs in _full_names(family, index).items()}
    renamed = {ours: theirs.replace("block_sparse_moe.", "mlp.") for ours, theirs in found.items()}
    return {ours: ours if ours in apart else theirs for ours, theirs in renamed.items()}


def _weights(module: Any, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of a decoder layer by the names of our params. Raises GraphError where it has
    others than a layer of its family has."""
    found = _split_experts(dict(module.named_parameters()))
    missing, extra = set(names.values()) - found.keys(), found.keys() - set(names.values())
    if missing or extra:
        what = f"no weight {min(missing)}" if missing else f"a weight {min(extra)} more"
        raise GraphError(f"{type(module).__name__} has {what} than a layer of its family",
                         hint="merge adapters into the weights first, and replace layers once")
    return {ours: found[theirs] for ours, theirs in names.items()}


def _split_experts(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mixtral has gate and up of all experts in one tensor: [experts, 2 * ffn, hidden]."""
    joined, down = f"{EXPERTS}gate_up_proj", f"{EXPERTS}down_proj"
    if joined not in found or down not in found:
        return found
    gate, up = found[joined].chunk(2, dim=1)
    others = {name: weight for name, weight in found.items() if name not in (joined, down)}
    return {**others, "w_gate": gate, "w_up": up, "w_down": found[down]}


def _check(model: Any, modules: Any, reserve: int) -> None:
    """Refuses what built layers cannot do, before anything is changed."""
    if reserve < 1:
        raise GraphError(f"reserve is {reserve}, wanted the number of tokens that a cache has to "
                         "spare: at least 1")
    if any(hasattr(type(module), "inside") for module in modules):
        raise GraphError("the layers of this model are replaced already")
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu":
            raise GraphError(f"{name} is on {weight.device}, wanted the CPU", hint="model.cpu()")
        if not weight.is_floating_point():
            raise GraphError(f"{name} is {weight.dtype}, wanted f32, bf16 or f16 weights",
                             hint="load the model without quantisation")
    dropout = max(map(_dropout, modules))
    if model.training and dropout:
        raise GraphError(f"the model is in training mode with dropout {dropout}",
                         hint="model.eval()")


def _dropout(module: Any) -> float:
    """The greatest probability with which a layer drops anything in training."""
    found = [part.p for part in module.modules() if isinstance(part, torch.nn.Dropout)]
    found += [getattr(part, "attention_dropout", 0.0) for part in module.modules()]
    return max((float(p) for p in found if isinstance(p, float | int)), default=0.0)


def _dtype(model: Any) -> str:
    for name in ("f32", "bf16", "f16"):
        if model.dtype == torch_dtype(name):
            return name
    raise GraphError(f"the model is {model.dtype}, wanted f32, bf16 or f16",
                     hint="model.to(torch.float32)")


def _first_kind(model: Any) -> str:
    """The kind of mask that the model's layers are given first."""
    eager = model.config._attn_implementation == "eager"
    return ADDED if eager else UNMASKED


def _before(shared: Shared) -> Any:
    """A hook that runs before every forward of the module that calls the layers."""
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, reason in REFUSED.items():
            asked = kwargs.get(name)
            if getattr(module.config, name, False) if asked is None else asked:
                raise GraphError(f"{name}=True: {reason}", hint="ask a model whose layers are not "
                                 "replaced")
        shared.clear()
    return hook
