"""What a model on disk is, in one spelling whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.layer import Model, leaves_of

MOST_LAYERS = 10_000  # a larger number comes from a damaged file
SIZES = ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn")


@dataclass(frozen=True)
class Family:
    """An architecture of graphdsl.models with the sizes of one model.

    `model` makes the Model of `config` (a frozen dataclass that has the fields of DecoderConfig).
    `names` has the name on disk of each of its params; several names are weights that are stacked
    along a new first axis. `max_positions` is how many tokens the model takes, `eos` what ends its
    texts where its config does not say, `prefix` what all names lack in files that were saved
    without the head. Made by family_of.
    """

    model: Callable[[Any], Model]
    config: Any
    names: Mapping[str, str | tuple[str, ...]]
    max_positions: int
    eos: tuple[int, ...] = ()
    prefix: str = ""

    def fitting(self, found: Iterable[str]) -> Family:
        """This family with the names that a file has: without the prefix if no name has it."""
        if not self.prefix or any(name.startswith(self.prefix) for name in found):
            return self
        bare: dict[str, str | tuple[str, ...]] = {}
        for param, names in self.names.items():
            bare[param] = (names.removeprefix(self.prefix) if isinstance(names, str)
                           else tuple(name.removeprefix(self.prefix) for name in names))
        return replace(self, names=bare)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the model with its shape, by its name on disk, in the order of params. A
        tied head has no weight of its own."""
        shapes: dict[str, tuple[int, ...]] = {}
        for param, shape in self._params():
            names = self.names[param]
            if isinstance(names, str):
                shapes[names] = shape
            else:
                assert len(names) == shape[0], f"{param} {shape} is stacked from {len(names)}"
                shapes |= dict.fromkeys(names, shape[1:])
        return shapes

    def _params(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Params with their shapes; a shared one once, by its first name."""
        seen: set[Value] = set()
        for path, leaf in leaves_of(self.model(self.config)):
            if isinstance(leaf, Value) and leaf not in seen:
                seen.add(leaf)
                yield path, tuple(size for size in leaf.shape if isinstance(size, int))


def family_of(file: str | Path, model: Callable[[Any], Model], config: Any,
              weight_names: Callable[[Any], Mapping[str, str | tuple[str, ...]]],
              max_positions: int, eos: tuple[int, ...] = (), prefix: str = "") -> Family:
    """The Family of a config that was read from `file`. Raises GraphError, naming the file, if its
    sizes and constants cannot belong to one model: before the names of its weights are made, of
    which a damaged file can ask for a billion."""
    check_sizes(str(file), config)
    want(max_positions >= 1, str(file), f"max_positions is {max_positions}", "at least 1")
    return Family(model, config, weight_names(config), max_positions, eos, prefix)


@dataclass(frozen=True)
class Settings:
    """What is known of a model beside its weights. `dtype` is the one its file names ("f32", "bf16"
    or "f16"); `eos` holds every id that ends a text."""

    vocab: int
    layers: int
    max_positions: int
    bos: int | None
    eos: tuple[int, ...]
    dtype: str
    family: Family


def settings_of(file: str, family: Family, bos: int | None, eos: tuple[int, ...],
                dtype: str) -> Settings:
    """The settings of a model. Raises GraphError, naming `file`, for an end of text that is no
    token of the model."""
    config = family.config
    for token in eos:
        want(0 <= token < config.vocab, file, f"eos id {token}", f"an id below {config.vocab}")
    return Settings(config.vocab, config.layers, family.max_positions, bos, eos, dtype, family)


def check_sizes(file: str, config: Any) -> None:
    """Checks those of SIZES, eps and theta that the config has, before anything is made of them."""
    for name in (name for name in SIZES if hasattr(config, name)):
        want(getattr(config, name) >= 1, file, f"{name} is {getattr(config, name)}", "at least 1")
    few = config.layers <= MOST_LAYERS
    want(few, file, f"layers is {config.layers}", f"at most {MOST_LAYERS}")
    if hasattr(config, "eps"):
        want(config.eps > 0, file, f"the norm's eps is {config.eps}", "above 0")
    if hasattr(config, "kv_heads"):
        found = f"{config.heads} heads share {config.kv_heads} kv heads"
        divides = config.heads % config.kv_heads == 0
        want(divides, file, found, "a number of kv heads that divides the heads")
    if hasattr(config, "theta"):
        want(config.theta > 0, file, f"rope theta is {config.theta}", "above 0")
        even = config.head_dim % 2 == 0
        want(even, file, f"head_dim is {config.head_dim}", "an even number")


def want(good: bool, file: str, found: str, wanted: str) -> None:
    """Raises GraphError, naming the file, unless `good`."""
    if not good:
        raise GraphError(f"{file}: {found}; wanted: {wanted}")
