"""The header of a GGUF file: its metadata and where each tensor's bytes lie.

Follows the format's specification, versions 2 and 3, little-endian. The `gguf` package can read
the header too, but it makes numpy objects of every text of the vocabulary (seconds for 50,000
tokens) and answers a truncated file with whatever numpy happens to raise. Here every read is
checked against the file's end, and arrays are skipped until someone asks for them.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphdsl.errors import GraphError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
MOST_DIMENSIONS = 4

Scalar = int | float | bool | str


@dataclass(frozen=True)
class ArrayAt:
    """An array in the metadata that was skipped: its element type, length and place."""

    kind: int
    count: int
    offset: int


@dataclass(frozen=True)
class TensorAt:
    """One tensor: its shape in torch's order, its ggml type and the place of its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the weights of a GGUF file. `end` is where the header's bytes stop."""

    path: Path
    fields: Mapping[str, Scalar | ArrayAt]
    tensors: Mapping[str, TensorAt]
    end: int

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise GraphError(f"{self.path}: {key!r} is {value!r}; wanted: a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise GraphError(f"{self.path}: {key!r} is {value!r}; wanted: a number")
        if not math.isfinite(value):
            raise GraphError(f"{self.path}: {key!r} is {value!r}; wanted: a finite number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise GraphError(f"{self.path}: {key!r} is {value!r}; wanted: a text")
        return value

    def _get(self, key: str, default: Scalar | None) -> Scalar | ArrayAt:
        value = self.fields.get(key, default)
        if value is None:
            raise GraphError(f"{self.path}: the metadata has no {key!r}")
        return value


class Cursor:
    """Reads little-endian values one after another; beyond the end it raises GraphError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def take(self, size: int) -> int:
        """Moves `size` bytes on and returns where they start."""
        start = self.at
        if size > len(self.data) - start:
            raise GraphError(
                f"{self.path}: truncated GGUF: the header goes on beyond the file's end at byte"
                f" {len(self.data)}",
                hint="copy or download the file again",
            )
        self.at = start + size
        return start

    def scalar(self, kind: int) -> int | float | bool:
        layout = "<" + SCALARS[kind]
        start = self.take(struct.calcsize(layout))
        value: int | float | bool = struct.unpack_from(layout, self.data, start)[0]
        return value

    def u32(self) -> int:
        return int(self.scalar(4))

    def u64(self) -> int:
        return int(self.scalar(10))

    def string(self) -> str:
        size = self.u64()
        start = self.take(size)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"a text at byte {start} is not UTF-8") from error

    def value(self) -> Scalar | ArrayAt:
        kind = self.u32()
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise self.broken(f"a value at byte {self.at} is of unknown type {kind}")
        return self.scalar(kind)

    def array(self) -> ArrayAt:
        found = ArrayAt(self.u32(), self.u64(), self.at)
        if found.kind in SCALARS:
            self.take(found.count * struct.calcsize("<" + SCALARS[found.kind]))
            return found
        if found.kind != STRING:
            raise self.broken(f"an array at byte {self.at} is of unknown type {found.kind}")
        self._skip_texts(found.count)
        return found

    def _skip_texts(self, count: int) -> None:
        """Moves on behind so many texts: a vocabulary has a hundred thousand, hence no calls."""
        length, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        last = len(data) - 8
        for _ in range(count):
            if at > last:
                at += 8
                break
            at += 8 + length(data, at)[0]
        self.take(at - self.at)

    def tensor(self) -> TensorAt:
        name = self.string()
        rank = self.u32()
        if not 1 <= rank <= MOST_DIMENSIONS:
            raise self.broken(f"tensor {name!r} has {rank} dimensions")
        sizes = [self.u64() for _ in range(rank)]
        return TensorAt(name, tuple(reversed(sizes)), self.u32(), self.u64())

    def broken(self, what: str) -> GraphError:
        return GraphError(
            f"{self.path}: damaged GGUF: {what}", hint="copy or download the file again"
        )


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF file, tensor offsets counted from the file's start.

    Raises GraphError if the file is missing, not GGUF, of another version, truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise GraphError(f"{path}: not a GGUF file: it does not start with 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(path, data))
    except FileNotFoundError as error:
        raise GraphError(f"{path}: no such file") from error
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(cursor: Cursor) -> GgufHeader:
    cursor.take(len(MAGIC))
    version = cursor.u32()
    if version not in VERSIONS:
        big = " (a big-endian file?)" if version & 0xFFFF == 0 else ""
        raise GraphError(f"{cursor.path}: GGUF version {version}{big}; supported: 2 and 3")
    tensor_count, field_count = cursor.u64(), cursor.u64()
    fields: dict[str, Scalar | ArrayAt] = {}
    for _ in range(field_count):
        key = cursor.string()
        if key in fields:
            raise cursor.broken(f"metadata {key!r} stands twice")
        fields[key] = cursor.value()
    found = [cursor.tensor() for _ in range(tensor_count)]
    end = cursor.at
    start = _align(cursor, fields, end)
    tensors = {t.name: TensorAt(t.name, t.shape, t.kind, start + t.offset) for t in found}
    if len(tensors) != len(found):
        raise cursor.broken("two tensors have one name")
    return GgufHeader(cursor.path, fields, tensors, end)


def _align(cursor: Cursor, fields: Mapping[str, Scalar | ArrayAt], end: int) -> int:
    alignment = fields.get("general.alignment", 32)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
        raise cursor.broken(f"'general.alignment' is {alignment!r}")
    return -(-end // alignment) * alignment


def read_floats(header: GgufHeader, name: str) -> tuple[float, ...]:
    """The values of an f32 tensor of one dimension."""
    tensor = header.tensors[name]
    if tensor.kind != 0 or len(tensor.shape) != 1:
        raise GraphError(f"{header.path}: tensor {name!r} is not a row of f32 numbers")
    size = 4 * tensor.shape[0]
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(size)
    if len(data) != size:
        raise GraphError(f"{header.path}: truncated GGUF: tensor {name!r} is cut off")
    return struct.unpack(f"<{tensor.shape[0]}f", data)
