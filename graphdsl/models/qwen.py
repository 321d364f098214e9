"""Qwen2 and Qwen3 in the DSL, their config and the names of their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphdsl.ir import Value
from graphdsl.layer import Param
from graphdsl.models import llama
from graphdsl.models.decoder import names_in_layers
from graphdsl.ops import attention, linear, rms_norm, rope, silu
from graphdsl.ops.shape import merge_heads, split_heads


@dataclass(frozen=True)
class Config(llama.Config):
    """A Llama's sizes and constants; `sliding` are the layers whose tokens see only the last
    `window` ones."""

    sliding: tuple[int, ...] = ()


QWEN2_05B = Config(151936, 896, 24, 14, 2, 64, 4864, 1e-6, 1e6, tied=True)
QWEN3_06B = Config(151936, 1024, 28, 16, 8, 128, 3072, 1e-6, 1e6, tied=True)


class QwenLayer(llama.LlamaLayer):
    """A decoder layer with the params of Llama's; the two kinds differ in how they make q and k."""

    def __init__(self, config: Config, window: int = 0) -> None:
        super().__init__(config)
        self.window = window

    def projected(self, h: Value) -> tuple[Value, Value, Value]:
        """h[batch, tokens, hidden] -> q, k and v, each [batch, tokens, its heads, head_dim]."""
        c = self.config
        return (split_heads(linear(h, self.wq), c.heads),
                split_heads(linear(h, self.wk), c.kv_heads),
                split_heads(linear(h, self.wv), c.kv_heads))

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        q, k, v = self.projected(rms_norm(x, self.attn_norm, eps=self.config.eps))
        kv = self.kv.append(rope(k, cos, sin), v, positions)
        attended = attention(rope(q, cos, sin), kv.k, kv.v, positions, window=self.window)
        x = x + linear(merge_heads(attended), self.wo)

        h = rms_norm(x, self.ffn_norm, eps=self.config.eps)
        y: Value = x + linear(silu(linear(h, self.w_gate)) * linear(h, self.w_up), self.w_down)
        return y


class Qwen2Layer(QwenLayer):
    """q, k and v have a bias."""

    def __init__(self, config: Config = QWEN2_05B, window: int = 0) -> None:
        super().__init__(config, window)
        self.bq = Param(config.heads * config.head_dim)
        self.bk = Param(config.kv_heads * config.head_dim)
        self.bv = Param(config.kv_heads * config.head_dim)

    def projected(self, h: Value) -> tuple[Value, Value, Value]:
        c = self.config
        return (split_heads(linear(h, self.wq, self.bq), c.heads),
                split_heads(linear(h, self.wk, self.bk), c.kv_heads),
                split_heads(linear(h, self.wv, self.bv), c.kv_heads))


class Qwen3Layer(QwenLayer):
    """Every head of q and k is normalised."""

    def __init__(self, config: Config = QWEN3_06B, window: int = 0) -> None:
        super().__init__(config, window)
        self.q_norm = Param(config.head_dim)
        self.k_norm = Param(config.head_dim)

    def projected(self, h: Value) -> tuple[Value, Value, Value]:
        q, k, v = super().projected(h)
        eps = self.config.eps
        return rms_norm(q, self.q_norm, eps=eps), rms_norm(k, self.k_norm, eps=eps), v


class Qwen2(llama.Llama):
    """Token ids to logits as in Llama, with layers of its own."""

    layer: ClassVar[type[QwenLayer]] = Qwen2Layer

    def __init__(self, config: Config = QWEN2_05B) -> None:
        super().__init__(config)
        self.layers = [self.layer(config, config.window if i in config.sliding else 0)
                       for i in range(config.layers)]


class Qwen3(Qwen2):
    """Token ids to logits as in Llama, with layers of its own."""

    layer = Qwen3Layer

    def __init__(self, config: Config = QWEN3_06B) -> None:
        super().__init__(config)


QWEN2_NAMES = {f"b{x}": f"self_attn.{x}_proj.bias" for x in "qkv"}
QWEN3_NAMES = {f"{x}_norm": f"self_attn.{x}_norm.weight" for x in "qk"}
"""The names that Hugging Face gives to those params of a layer that Llama has not."""


def qwen2_names(config: Config) -> dict[str, str]:
    """The Hugging Face name of every param of Qwen2(config)."""
    own = names_in_layers(config.layers, "model.layers", QWEN2_NAMES)
    return llama.weight_names(config) | own


def qwen3_names(config: Config) -> dict[str, str]:
    """The Hugging Face name of every param of Qwen3(config)."""
    own = names_in_layers(config.layers, "model.layers", QWEN3_NAMES)
    return llama.weight_names(config) | own
