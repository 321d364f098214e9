"""A model on disk, whatever its format: its settings and its weights, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from graphdsl.errors import GraphError
from graphdsl.hf.config import read_config
from graphdsl.hf.family import Settings
from graphdsl.hf.fields import Fields, read_json
from graphdsl.hf.gguf_weights import open_gguf
from graphdsl.hf.packed_weights import PackedWeights, read_packing
from graphdsl.hf.safetensors_weights import (
    PICKLES,
    SafetensorsWeights,
    open_safetensors,
    refuse_pickle,
)
from graphdsl.lazy import torch
from graphdsl.quant import Quant, Quantised


class WeightSource(Protocol):
    """A file format: the shapes it holds, and reading one weight of them, in floats or, where it
    has a format, quantised."""

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(self, name: str) -> torch.Tensor: ...

    def quant(self, name: str) -> Quant | None: ...

    def read_quantised(self, name: str) -> Quantised: ...


@dataclass(frozen=True)
class Checkpoint:
    """A model whose weights were all found, with the shapes that its settings ask for.

    The files stay mapped while the Checkpoint lives: do not change them meanwhile.
    """

    path: Path
    settings: Settings
    shapes: Mapping[str, tuple[int, ...]]
    source: WeightSource

    def names(self) -> tuple[str, ...]:
        """The Hugging Face names of the model's weights in layer order; a tied head has none."""
        return tuple(self.shapes)

    def tensor(self, name: str) -> torch.Tensor:
        """The weight of this name, as it lies on disk: mostly [out, in] for a linear, [vocab,
        hidden] for the embedding and the head, [hidden] for a norm. f32, bf16 or f16 from
        safetensors; f32 from GGUF.

        Nothing is kept: asking twice reads twice. Raises GraphError for a name the model has not.
        """
        if name not in self.shapes:
            raise GraphError(f"{self.path}: the model has no weight {name!r}")
        return self.source.read(name)

    def param(self, name: str) -> torch.Tensor:
        """The value of the Model's param of this name; one that is stacked from several weights is
        filled from one weight at a time."""
        names = self.settings.family.names[name]
        if isinstance(names, str):
            return self.tensor(names)
        first = self.tensor(names[0])
        stacked = first.new_empty((len(names), *first.shape))
        for index, part in enumerate(names):
            stacked[index] = self.tensor(part)
        return stacked

    def part(self, name: str, axis: int, start: int, size: int) -> torch.Tensor:
        """`size` elements along `axis` from `start` on of the Model's param of this name. Floats
        from safetensors are read in parts; of others the whole weight is read and a copy made."""
        stored = self.settings.family.names[name]
        if isinstance(stored, str) and isinstance(self.source, SafetensorsWeights):
            return self.source.read_part(stored, axis, start, size)
        return self.param(name).narrow(axis, start, size).clone()

    def quant(self, name: str) -> Quant | None:
        """The format in which the file has the Model's param of this name; None for floats."""
        stored = self.settings.family.names[name]
        return self.source.quant(stored) if isinstance(stored, str) else None

    def quantised(self, name: str) -> Quantised:
        """The Model's param of this name as the file has it; it has to have a format."""
        stored = self.settings.family.names[name]
        assert isinstance(stored, str), name
        return self.source.read_quantised(stored)


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a Hugging Face folder (config.json, safetensors in one file or sharded) or a GGUF file.

    Only headers are read. Raises GraphError if anything is missing, truncated, damaged, of an
    unknown architecture or of the wrong shape.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise GraphError(f"{path}: no such file or folder")
    if path.suffix in PICKLES:
        refuse_pickle([path])
    if path.suffix == ".safetensors":
        raise GraphError(f"{path}: one file of weights; wanted: the folder with its config.json")
    weights = open_gguf(path)
    shapes = _checked(path, weights.settings, weights.shapes())
    return Checkpoint(path, weights.settings, shapes, weights)


def _open_folder(folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file():
        inside = sorted(file.name for file in folder.glob("*.gguf"))
        hint = f"name the file itself: {folder / inside[0]}" if inside else ""
        raise GraphError(f"{folder}: not a model's folder: it has no config.json", hint=hint)
    settings = read_config(folder)
    packing = read_packing(Fields(folder / "config.json", read_json(folder / "config.json")))
    files = open_safetensors(folder)
    weights = PackedWeights(files, packing) if packing else files
    found = weights.shapes()
    settings = replace(settings, family=settings.family.fitting(found))
    shapes = _checked(folder, settings, found)
    weights.check_dtypes(shapes)
    return Checkpoint(folder, settings, shapes, weights)


def _checked(
    path: Path, settings: Settings, found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The weights that the model is made of; what else lies in the file does not matter."""
    wanted = settings.family.weight_shapes()
    missing = [name for name in wanted if name not in found]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise GraphError(f"{path}: the weight {missing[0]!r} is missing{others}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise GraphError(
                f"{path}: weight {name!r} has shape {list(found[name])}; wanted: {list(shape)}"
            )
    return wanted
