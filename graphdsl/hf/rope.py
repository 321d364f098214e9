"""Rotary embedding in config.json, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from dataclasses import dataclass

from graphdsl.errors import GraphError
from graphdsl.hf.family import want
from graphdsl.hf.fields import Fields
from graphdsl.ops.position import Scaling

SUPPORTED = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """theta, the scaling that rope_frequencies takes, and the part of a head that is turned."""

    theta: float
    scaling: Scaling
    partial: float = 1.0


def read_rope(fields: Fields, max_positions: int, theta: float = 10000.0,
              partial: float | None = None) -> Rope:
    """rope_parameters holds all in the new spelling; rope_theta, rope_scaling and
    partial_rotary_factor stand apart in the old one.

    `theta` and `partial` stand for missing entries; without `partial` only heads that are turned
    whole are taken. Raises GraphError for kinds of scaling that are not supported.
    """
    new = fields.has("rope_parameters")
    rope = fields.mapping("rope_parameters" if new else "rope_scaling")
    found = rope.number("rope_theta", fields.number("rope_theta", theta))
    # Some files keep the trained length outside of the rope fields; transformers lets it win.
    inner = rope.integer("original_max_position_embeddings", max_positions)
    trained = fields.integer("original_max_position_embeddings", inner)
    part = 1.0 if partial is None else partial
    part = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", part))
    if partial is None and part != 1.0:
        raise GraphError(f"{fields.path}: 'partial_rotary_factor' is not 1; supported: 1")
    want(0 < part <= 1, str(fields.path), f"'partial_rotary_factor' is {part}", "in (0, 1]")
    return Rope(found, read_scaling(rope, trained), part)


def read_scaling(rope: Fields, trained: int) -> Scaling:
    """The scaling in an object of rope fields, for a model trained on so many positions."""
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return ()
    if kind not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise GraphError(f"{rope.path}: rope scaling of type {kind!r}; supported: {known}")
    factor = rope.number("factor")
    if kind == "linear":
        return linear_scaling(str(rope.path), factor)
    _check_factor(str(rope.path), factor)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    found = f"low_freq_factor is {low}, high_freq_factor {high}"
    want(0 < low < high, str(rope.path), found, "0 < low < high")
    found = f"original_max_position_embeddings is {trained}"
    want(trained >= 1, str(rope.path), found, "at least 1")
    return (("factor", factor), ("high_freq_factor", high), ("low_freq_factor", low),
            ("original_max_position_embeddings", trained), ("rope_type", "llama3"))


def linear_scaling(file: str, factor: float) -> Scaling:
    """Every frequency divided by `factor`."""
    _check_factor(file, factor)
    return (("factor", factor), ("rope_type", "linear"))


def factors_scaling(file: str, factors: tuple[float, ...], rotary_dim: int) -> Scaling:
    """Frequency i divided by factors[i], which is how a GGUF file stores the result of llama3."""
    pairs = rotary_dim // 2
    want(len(factors) == pairs, file, f"{len(factors)} rope factors", f"{pairs}")
    want(all(f > 0 for f in factors), file, "a rope factor below 0", "above 0")
    return (("factors", factors), ("rope_type", "factors"))


def _check_factor(file: str, factor: float) -> None:
    want(factor > 0, file, f"rope scaling factor is {factor}", "above 0")
