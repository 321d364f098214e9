"""config.json of a Hugging Face folder: which family of models it is, and its settings."""

from __future__ import annotations

from pathlib import Path

from graphdsl.errors import GraphError
from graphdsl.hf.families import HINTS, READERS
from graphdsl.hf.family import Family, Settings, settings_of
from graphdsl.hf.fields import Fields, read_json
from graphdsl.hf.packed_weights import CONFIG

DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def read_config(folder: Path) -> Settings:
    """The settings in folder/config.json; the ids that end a text come from generation_config.json
    where there is one, as transformers does.

    Raises GraphError for a file that is missing or broken, an unknown architecture, and features
    that would change the maths and are not supported.
    """
    fields = Fields(folder / "config.json", read_json(folder / "config.json"))
    family = _family(fields)
    bos = fields.integer("bos_token_id") if fields.has("bos_token_id") else None
    eos = _end_of_text(folder, fields, family.eos)
    return settings_of(str(fields.path), family, bos, eos, _dtype(fields))


def read_family(fields: Fields) -> Family:
    """The family of what config.json holds. Raises GraphError for an unknown architecture, and for
    features that would change the maths and are not supported."""
    if fields.has(CONFIG):
        method = fields.mapping(CONFIG).text("quant_method", "unknown")
        raise GraphError(f"{fields.path}: the weights are quantised ({method}); wanted: f32, bf16 "
                         "or f16 weights", hint="load_model reads GPTQ, AWQ and GGUF files")
    return _family(fields)


def _family(fields: Fields) -> Family:
    kind = fields.text("model_type")
    if kind not in READERS:
        known = ", ".join(READERS)
        raise GraphError(f"{fields.path}: model_type is {kind!r}; supported: {known}",
                         hint=HINTS.get(kind, ""))
    return READERS[kind](fields)


def _end_of_text(folder: Path, fields: Fields, default: tuple[int, ...]) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    if path.is_file():
        generation = Fields(path, read_json(path))
        if generation.has("eos_token_id"):
            return generation.ids("eos_token_id")
    if "eos_token_id" not in fields.values:
        return default
    return fields.ids("eos_token_id")


def _dtype(fields: Fields) -> str:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    name = fields.text(key, "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise GraphError(f"{fields.path}: {key!r} is {name!r}; supported: {', '.join(DTYPES)}")
    return DTYPES[name]
