"""config.json of a Hugging Face folder, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.hf.settings import SUPPORTED_ROPE, LlamaSettings, RopeScaling

ARCHITECTURES = ("llama",)
DEFAULT_EOS = (2,)  # what LlamaConfig of transformers takes when the file does not say
DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def read_json(path: Path) -> dict[str, Any]:
    """The object that the JSON file holds. Raises GraphError if it is missing, truncated, not UTF-8
    or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GraphError(f"{path}: no such file") from error
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        hint = "the file may be truncated: copy or download it again"
        raise GraphError(f"{path}: not valid JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise GraphError(f"{path}: holds a {type(value).__name__}; wanted: a JSON object")
    return value


@dataclass(frozen=True)
class Fields:
    """Typed reading of a JSON object: a missing or mistyped entry is a GraphError with its name."""

    path: Path
    values: dict[str, Any]

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._mistyped(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._mistyped(key, value, "a number")
        if not math.isfinite(value):
            raise self._mistyped(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._mistyped(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._mistyped(key, value, "a text")
        return value

    def mapping(self, key: str) -> Fields:
        """The object under this key; an empty one where the key is missing or null."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._mistyped(key, value, "an object")
        return Fields(self.path, value)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids: one number, a list of numbers, or nothing."""
        value = self._get(key, [])
        found = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in found):
            raise self._mistyped(key, value, "a token id or a list of them")
        return tuple(found)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise GraphError(f"{self.path}: {key!r} is missing")
        return default

    def _mistyped(self, key: str, value: Any, wanted: str) -> GraphError:
        return GraphError(f"{self.path}: {key!r} is {value!r}; wanted: {wanted}")


def read_config(folder: Path) -> LlamaSettings:
    """The settings in folder/config.json; the ids that end a text come from generation_config.json
    where there is one, as transformers does.

    Raises GraphError for a file that is missing or broken, an unknown architecture, and features
    that would change the maths and are not supported.
    """
    fields = Fields(folder / "config.json", read_json(folder / "config.json"))
    _refuse_unsupported(fields)
    settings = _llama(fields, _end_of_text(folder, fields))
    settings.check(str(fields.path))
    return settings


def _refuse_unsupported(fields: Fields) -> None:
    path = fields.path
    kind = fields.text("model_type")
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise GraphError(f"{path}: model_type is {kind!r}; supported: {known}")
    if fields.has("quantization_config"):
        method = fields.mapping("quantization_config").values.get("quant_method", "unknown")
        raise GraphError(
            f"{path}: the weights are quantised ({method}); wanted: f32, bf16 or f16 weights",
            hint="use the unquantised model, or a GGUF file of it",
        )
    for key in ("attention_bias", "mlp_bias"):
        if fields.flag(key, False):
            raise GraphError(f"{path}: {key!r} is true; supported: Llama models without biases")
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise GraphError(f"{path}: 'hidden_act' is {activation!r}; supported: 'silu'")


def _end_of_text(folder: Path, fields: Fields) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    if path.is_file():
        generation = Fields(path, read_json(path))
        if generation.has("eos_token_id"):
            return generation.ids("eos_token_id")
    if "eos_token_id" not in fields.values:
        return DEFAULT_EOS
    return fields.ids("eos_token_id")


def _llama(fields: Fields, eos: tuple[int, ...]) -> LlamaSettings:
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    max_positions = fields.integer("max_position_embeddings", 2048)
    theta, scaling = _rope(fields, max_positions)
    return LlamaSettings(
        vocab=fields.integer("vocab_size"),
        hidden=hidden,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=_head_dim(fields, hidden, heads),
        ffn=fields.integer("intermediate_size"),
        eps=fields.number("rms_norm_eps", 1e-6),
        theta=theta,
        rope_scaling=scaling,
        tied=fields.flag("tie_word_embeddings", False),
        max_positions=max_positions,
        bos=fields.integer("bos_token_id") if fields.has("bos_token_id") else None,
        eos=eos,
        dtype=_dtype(fields),
    )


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if fields.has("head_dim"):
        return fields.integer("head_dim")
    if heads < 1 or hidden % heads:
        raise GraphError(
            f"{fields.path}: 'head_dim' is missing and 'hidden_size' {hidden} is not a multiple of"
            f" 'num_attention_heads' {heads}"
        )
    return hidden // heads


def _dtype(fields: Fields) -> str:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    name = fields.text(key, "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise GraphError(f"{fields.path}: {key!r} is {name!r}; supported: {', '.join(DTYPES)}")
    return DTYPES[name]


def _rope(fields: Fields, max_positions: int) -> tuple[float, RopeScaling | None]:
    """theta and the scaling: rope_parameters holds both in the new spelling; rope_theta and
    rope_scaling stand apart in the old one."""
    new = fields.has("rope_parameters")
    rope = fields.mapping("rope_parameters" if new else "rope_scaling")
    outer = fields.number("rope_theta", 10000.0)
    theta = rope.number("rope_theta", outer)
    # Some files keep the trained length outside of the rope fields; transformers lets it win.
    inner = rope.integer("original_max_position_embeddings", max_positions)
    trained = fields.integer("original_max_position_embeddings", inner)
    for place in (fields, rope):
        if place.number("partial_rotary_factor", 1.0) != 1.0:
            raise GraphError(f"{fields.path}: 'partial_rotary_factor' is not 1; supported: 1")
    return theta, _scaling(rope, trained)


def _scaling(rope: Fields, trained: int) -> RopeScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=rope.number("factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_positions=trained,
        )
    known = ", ".join(SUPPORTED_ROPE)
    raise GraphError(f"{rope.path}: rope scaling of type {kind!r}; supported: {known}")
