"""An activation that no backend knows: it becomes one generated loop, without any C++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl import Layer, Param, Value, operation
from graphdsl.ops import cast, relu, softmax

if TYPE_CHECKING:
    import torch


@operation("x[*b, d], temperature[d]:f32 -> y[*b, d]")
def warm_softmax(x: Value, temperature: Value) -> Value:
    """softmax(relu(x)^2 * temperature) along the row, in f32, rounded to x's dtype."""
    h = relu(cast(x, dtype="f32"))
    return cast(softmax(h * h * temperature), dtype=x.dtype)


@dataclass(frozen=True)
class Config:
    hidden: int = 4096


DEFAULT = Config()


class WarmSoftmax(Layer):
    """The activation with a learned temperature for every channel."""

    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config: Config = DEFAULT) -> None:
        self.config = config
        self.temperature = Param(config.hidden, dtype="f32")

    def forward(self, x: Value) -> Value:
        return warm_softmax(x, self.temperature)


def peer(config: Config) -> torch.nn.Module:
    """The same in plain torch; `load` takes {"temperature": f32 [hidden]}."""
    import torch

    class TorchWarmSoftmax(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("temperature", torch.ones(config.hidden))

        def load(self, params: dict[str, torch.Tensor]) -> None:
            self.temperature = params["temperature"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x.float().relu()
            return (h * h * self.temperature).softmax(-1).to(x.dtype)

    return TorchWarmSoftmax()
