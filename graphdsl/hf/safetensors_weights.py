"""The weights of a Hugging Face folder: one safetensors file, or several with an index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.hf.extras import need
from graphdsl.hf.fields import read_json
from graphdsl.lazy import torch
from graphdsl.quant import Quant, Quantised

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class SafetensorsWeights:
    """Reads single weights from the mapped files: nothing is in memory before it is asked for."""

    folder: Path
    files: Mapping[str, Any]
    place: Mapping[str, str]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight in the folder, from the files' headers."""
        return {name: self.shape(name) for name in self.place}

    def read(self, name: str) -> torch.Tensor:
        """The weight of this name, in the dtype that the file has it in."""
        file = self.place[name]
        error_type = need("safetensors").SafetensorError
        try:
            weight: torch.Tensor = self.files[file].get_tensor(name)
        except error_type as error:
            raise _unreadable(self.folder / file, error) from error
        return weight

    def read_part(self, name: str, axis: int, start: int, size: int) -> torch.Tensor:
        """`size` elements along `axis` from `start` on of the weight of this name; nothing else of
        it is read."""
        file = self.place[name]
        error_type = need("safetensors").SafetensorError
        try:
            whole = self.files[file].get_slice(name)
            part: torch.Tensor = whole[(*[slice(None)] * axis, slice(start, start + size))]
        except error_type as error:
            raise _unreadable(self.folder / file, error) from error
        return part

    def quant(self, name: str) -> Quant | None:
        """None: these are floats."""
        return None

    def read_quantised(self, name: str) -> Quantised:
        """Never asked for: no weight has a format."""
        raise AssertionError(name)

    def check_dtypes(self, names: Iterable[str]) -> None:
        """Raises GraphError for a weight that is not made of plain floats."""
        for name in names:
            dtype = self.files[self.place[name]].get_slice(name).get_dtype()
            if dtype not in FLOATS:
                raise GraphError(
                    f"{self.folder / self.place[name]}: weight {name!r} is of type {dtype};"
                    f" supported: {', '.join(FLOATS)}"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight of this name."""
        file = self.files[self.place[name]]
        return tuple(int(size) for size in file.get_slice(name).get_shape())


def open_safetensors(folder: Path) -> SafetensorsWeights:
    """Opens every weight file of the folder and reads its header.

    Raises GraphError for a missing, truncated or damaged file, an index that does not fit its
    files, and a folder that has its weights as pickle only.
    """
    if (folder / SINGLE).is_file():
        opened = _open(folder / SINGLE)
        return SafetensorsWeights(folder, {SINGLE: opened}, dict.fromkeys(opened.keys(), SINGLE))
    if (folder / INDEX).is_file():
        return _open_sharded(folder)
    refuse_pickle([path for path in sorted(folder.iterdir()) if path.suffix in PICKLES])
    raise GraphError(f"{folder}: no weights: neither {SINGLE} nor {INDEX} is there")


def refuse_pickle(paths: list[Path]) -> None:
    """Raises GraphError if there is any: a pickle can run code of its author's when it is read."""
    if paths:
        raise GraphError(
            f"{paths[0]}: weights as pickle are not read, because a pickle can run any code",
            hint="convert them to safetensors: load the model with transformers and call"
            " save_pretrained",
        )


def _open_sharded(folder: Path) -> SafetensorsWeights:
    path = folder / INDEX
    place = read_json(path).get("weight_map")
    if not isinstance(place, dict) or not place:
        raise GraphError(f"{path}: 'weight_map' is missing, empty or not an object")
    for name, file in place.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise GraphError(f"{path}: weight {name!r} lies in {file!r}; wanted: a file name")
    files = {}
    for file in sorted(set(place.values())):
        if not (folder / file).is_file():
            raise GraphError(f"{folder / file}: no such file; {INDEX} names it")
        files[file] = _open(folder / file)
    held = {file: set(opened.keys()) for file, opened in files.items()}
    for name, file in place.items():
        if name not in held[file]:
            raise GraphError(f"{folder / file}: weight {name!r} is not in it; {INDEX} says so")
    return SafetensorsWeights(folder, files, place)


def _open(path: Path) -> Any:
    safetensors = need("safetensors")
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> GraphError:
    return GraphError(
        f"{path}: not a whole safetensors file: {error}",
        hint="the file may be truncated: copy or download it again",
    )
