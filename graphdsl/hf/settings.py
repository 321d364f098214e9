"""What a decoder of the Llama family is made of, in one spelling whatever file it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from graphdsl.errors import GraphError
from graphdsl.lazy import torch

MOST_LAYERS = 10_000  # a larger number comes from a damaged file
SUPPORTED_ROPE = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that a model was trained on.

    kind is "linear" (every frequency divided by `factor`), "llama3" (long wavelengths divided by
    `factor`, short ones kept, a ramp between), or "factors" (frequency i divided by `factors[i]`,
    which is how a GGUF file stores the result of "llama3").
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class LlamaSettings:
    """The sizes and constants of a Llama model. `dtype` is the one its file names ("f32", "bf16" or
    "f16"); `eos` holds every id that ends a text."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    theta: float
    rope_scaling: RopeScaling | None
    tied: bool
    max_positions: int
    bos: int | None
    eos: tuple[int, ...]
    dtype: str

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the model with its shape, under its Hugging Face name and in layer order.
        A tied head has no weight of its own."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab, self.hidden)
        }
        for index in range(self.layers):
            shapes.update(self._layer_shapes(f"model.layers.{index}."))
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def _layer_shapes(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield prefix + "input_layernorm.weight", (self.hidden,)
        yield prefix + "self_attn.q_proj.weight", (q, self.hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, self.hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, self.hidden)
        yield prefix + "self_attn.o_proj.weight", (self.hidden, q)
        yield prefix + "post_attention_layernorm.weight", (self.hidden,)
        yield prefix + "mlp.gate_proj.weight", (self.ffn, self.hidden)
        yield prefix + "mlp.up_proj.weight", (self.ffn, self.hidden)
        yield prefix + "mlp.down_proj.weight", (self.hidden, self.ffn)

    def inverse_frequencies(self) -> torch.Tensor:
        """The angle per position of each pair of a head: f32 [head_dim / 2], scaling included.

        The order of the f32 operations is that of transformers (modeling_rope_utils), so that the
        values are equal to the last bit.
        """
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        plain = 1.0 / (self.theta**exponents)
        scaling = self.rope_scaling
        if scaling is None:
            return plain
        if scaling.kind == "linear":
            return plain / scaling.factor
        if scaling.kind == "llama3":
            return _llama3_frequencies(plain, scaling)
        assert scaling.kind == "factors", scaling.kind
        return plain / torch.tensor(scaling.factors, dtype=torch.float32)

    def check(self, file: str) -> None:
        """Raises GraphError, naming `file`, if the sizes cannot belong to one model."""
        for name in ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn"):
            _want(getattr(self, name) >= 1, file, f"{name} is {getattr(self, name)}", "at least 1")
        few = self.layers <= MOST_LAYERS
        _want(few, file, f"layers is {self.layers}", f"at most {MOST_LAYERS}")
        _want(self.max_positions >= 1, file, f"max_positions is {self.max_positions}", "at least 1")
        _want(self.eps > 0, file, f"the norm's eps is {self.eps}", "above 0")
        _want(self.theta > 0, file, f"rope theta is {self.theta}", "above 0")
        _want(
            self.heads % self.kv_heads == 0,
            file,
            f"{self.heads} heads share {self.kv_heads} kv heads",
            "a number of kv heads that divides the heads",
        )
        _want(self.head_dim % 2 == 0, file, f"head_dim is {self.head_dim}", "an even number")
        for token in self.eos:
            _want(0 <= token < self.vocab, file, f"eos id {token}", f"an id below {self.vocab}")
        self._check_scaling(file)

    def _check_scaling(self, file: str) -> None:
        scaling = self.rope_scaling
        if scaling is None:
            return
        _want(scaling.factor > 0, file, f"rope scaling factor is {scaling.factor}", "above 0")
        if scaling.kind == "llama3":
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            found = f"low_freq_factor is {low}, high_freq_factor {high}"
            _want(0 < low < high, file, found, "0 < low < high")
            length = scaling.original_max_positions
            _want(length >= 1, file, f"original_max_position_embeddings is {length}", "at least 1")
        if scaling.kind == "factors":
            found = f"{len(scaling.factors)} rope factors"
            _want(len(scaling.factors) == self.head_dim // 2, file, found, f"{self.head_dim // 2}")
            _want(all(f > 0 for f in scaling.factors), file, "a rope factor below 0", "above 0")


def _want(good: bool, file: str, found: str, wanted: str) -> None:
    if not good:
        raise GraphError(f"{file}: {found}; wanted: {wanted}")


def _llama3_frequencies(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """plain: f32 [head_dim / 2]; the scaling of Llama 3.1, as transformers computes it."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    length = scaling.original_max_positions
    wavelength = 2 * math.pi / plain
    is_long = wavelength > length / low
    is_short = wavelength < length / high
    stretched = torch.where(is_long, plain / scaling.factor, plain)
    ramp = (length / wavelength - low) / (high - low)
    between = (1 - ramp) * stretched / scaling.factor + ramp * stretched
    return torch.where(~is_short & ~is_long, between, stretched)
