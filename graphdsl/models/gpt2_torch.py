"""GPT-2 layers of torch: what benchmarks compare with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from graphdsl.models.gpt2 import LAYER_NAMES, MODULES
from graphdsl.models.torch_layer import CachedLayer, TransformersLayer


class LayerConfig(Protocol):
    """The sizes of a layer: those of examples/gpt2_layer.py and of graphdsl.models.gpt2."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def eps(self) -> float: ...


class TorchGPT2Layer(CachedLayer):
    """One decoder layer; its weights are turned round once, so that they are torch's own linears.
    See torch_layer for its use."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config.heads, config.hidden // config.heads)
        self.config = config
        self.weights: dict[str, tuple[Tensor, Tensor]] = {}

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of GPT2Layer's params (ln_1, c_attn, ...)."""
        for name in MODULES:
            weight = params[name]
            turned = weight.T.contiguous() if weight.dim() == 2 else weight
            self.weights[name] = turned, params[f"{name}_bias"]

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        c, w = self.config, self.weights
        batch, tokens, _ = x.shape
        h = F.layer_norm(x, (c.hidden,), *w["ln_1"], c.eps)
        qkv = F.linear(h, *w["c_attn"]).view(batch, tokens, 3, c.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + F.linear(self.attended(q, k, v), *w["c_proj"])
        h = F.layer_norm(x, (c.hidden,), *w["ln_2"], c.eps)
        h = F.gelu(F.linear(h, *w["mlp_in"]), approximate="tanh")
        return x + F.linear(h, *w["mlp_out"])


class TransformersGPT2Layer(TransformersLayer):
    """transformers' own block behind the same calls."""

    def __init__(self, config: LayerConfig) -> None:
        from transformers import GPT2Config
        from transformers.models.gpt2.modeling_gpt2 import GPT2Block

        made = GPT2Config(
            n_embd=config.hidden, n_head=config.heads, n_inner=config.ffn, n_layer=1,
            layer_norm_epsilon=config.eps, attn_implementation="sdpa")
        super().__init__(GPT2Block(made, 0).eval())

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Takes the weights by the names of GPT2Layer's params (ln_1, c_attn, ...)."""
        self.take({theirs: params[ours] for ours, theirs in LAYER_NAMES.items()})

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]."""
        cache, mask = self.past_and_mask(x.shape[1])
        result: Tensor = self.layer(x, cache, mask)
        return result


def gpt2_peers(config: LayerConfig) -> tuple[torch.nn.Module, ...]:
    """The layers of torch that a built GPT-2 layer is measured against: benchmarks take the
    faster. transformers' own is among them where it is installed."""
    own = TorchGPT2Layer(config)
    if find_spec("transformers") is None:
        return (own,)
    return own, TransformersGPT2Layer(config)
