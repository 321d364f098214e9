"""A Llama model in a GGUF file: settings from its metadata, weights under Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from graphdsl.errors import GraphError
from graphdsl.hf.extras import need
from graphdsl.hf.family import Settings, family_of, settings_of
from graphdsl.hf.gguf_blocks import BLOCKS, quantised_of
from graphdsl.hf.gguf_header import GgufHeader, TensorAt, read_floats, read_header
from graphdsl.hf.rope import factors_scaling, linear_scaling
from graphdsl.lazy import torch, torch_dtype
from graphdsl.models.llama import Config, Llama, weight_names
from graphdsl.ops.position import Scaling
from graphdsl.quant import Quant, Quantised

ROPE_FACTORS = "rope_freqs.weight"
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# The dequantisers of the gguf package work on 16 rows at a time. Rows of this many bytes keep such
# a step inside the second-level cache and the Python around it below the arithmetic: 6 times
# faster than the short rows of a small model.
ROW_BYTES = 1 << 14
HALVES = {"BF16": "bf16", "F16": "f16"}
"""Types of plain numbers that are not f32."""


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight that has this Hugging Face name."""
    if name in WHOLE:
        return WHOLE[name]
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{IN_LAYER[rest.removesuffix('.weight')]}.weight"


@dataclass(frozen=True)
class GgufWeights:
    """Reads single weights, quantised ones as they are or dequantised. Nothing is kept."""

    header: GgufHeader
    settings: Settings

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight in the file that the model knows, by Hugging Face name."""
        stored = self.header.tensors
        wanted = self.settings.family.weight_shapes()
        return {n: stored[gguf_name(n)].shape for n in wanted if gguf_name(n) in stored}

    def read(self, name: str) -> torch.Tensor:
        """The weight with this Hugging Face name: f32, q and k with their rows in the order that
        half-split rotary embedding wants."""
        tensor = self.header.tensors[gguf_name(name)]
        kind = _kind_name(tensor.kind)
        if kind in HALVES:  # torch widens them with vector instructions
            stored = torch.from_numpy(_stored(self.header.path, tensor))
            weight = stored.view(torch_dtype(HALVES[kind])).reshape(tensor.shape)
        else:
            weight = torch.from_numpy(_dequantise(self.header.path, tensor))
        heads = self._heads(name)
        return (weight[_half_split(weight.shape[0], heads)] if heads else weight).float()

    def quant(self, name: str) -> Quant | None:
        """The format of a weight that can be taken as the file has it."""
        tensor = self.header.tensors[gguf_name(name)]
        kind = _kind_name(tensor.kind)
        return BLOCKS[kind].quant if kind in BLOCKS and len(tensor.shape) == 2 else None

    def read_quantised(self, name: str) -> Quantised:
        """As `read`, for a weight that has a format, without dequantising it."""
        tensor = self.header.tensors[gguf_name(name)]
        n, k = tensor.shape
        weight = quantised_of(_kind_name(tensor.kind), _stored(self.header.path, tensor), (n, k))
        heads = self._heads(name)
        return weight.rows(_half_split(n, heads)) if heads else weight

    def _heads(self, name: str) -> int:
        """The heads whose rows llama.cpp has interleaved; 0 for a weight of another kind."""
        config: Config = self.settings.family.config
        if name.endswith("self_attn.q_proj.weight"):
            return config.heads
        return config.kv_heads if name.endswith("self_attn.k_proj.weight") else 0


def open_gguf(path: Path) -> GgufWeights:
    """Reads the header of the file and checks that every tensor lies inside the file and is of a
    type that can be dequantised. Raises GraphError for anything else."""
    header = read_header(path)
    size = path.stat().st_size
    readable: set[int] = set()
    for tensor in header.tensors.values():
        _check_tensor(path, tensor, size, readable)
    settings = _settings(header)
    _refuse_unsupported(header)
    return GgufWeights(header, settings)


def _settings(header: GgufHeader) -> Settings:
    architecture = header.text("general.architecture")
    if architecture != "llama":
        raise GraphError(f"{header.path}: architecture is {architecture!r}; supported: llama")
    max_positions = header.integer("llama.context_length")
    family = family_of(header.path, Llama, _config(header), weight_names, max_positions)
    eos = tuple(dict.fromkeys((*_ids(header, "eos"), *_ids(header, "eot"))))
    return settings_of(str(header.path), family, next(_ids(header, "bos"), None), eos, "f32")


def _config(header: GgufHeader) -> Config:
    hidden = header.integer("llama.embedding_length")
    heads = header.integer("llama.attention.head_count")
    rotary = header.integer("llama.rope.dimension_count", hidden // max(heads, 1))
    head_dim = header.integer("llama.attention.key_length", rotary)
    if head_dim != rotary or header.integer("llama.attention.value_length", head_dim) != head_dim:
        raise GraphError(
            f"{header.path}: rope turns {rotary} of {head_dim} elements of a head, or keys and"
            " values differ in length; supported: heads of one length, turned whole"
        )
    return Config(
        vocab=_vocab(header),
        hidden=hidden,
        layers=header.integer("llama.block_count"),
        heads=heads,
        kv_heads=header.integer("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=header.integer("llama.feed_forward_length"),
        eps=header.number("llama.attention.layer_norm_rms_epsilon"),
        theta=header.number("llama.rope.freq_base", 10000.0),
        scaling=_scaling(header, head_dim),
        tied="output.weight" not in header.tensors,
    )


def _ids(header: GgufHeader, name: str) -> Iterator[int]:
    key = f"tokenizer.ggml.{name}_token_id"
    if key in header.fields:
        yield header.integer(key)


def _vocab(header: GgufHeader) -> int:
    """The rows of the embedding: what metadata says about the vocabulary may be missing."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise GraphError(f"{header.path}: the weight 'token_embd.weight' is missing")
    return embedding.shape[0]


def _scaling(header: GgufHeader, head_dim: int) -> Scaling:
    if ROPE_FACTORS in header.tensors:
        return factors_scaling(str(header.path), read_floats(header, ROPE_FACTORS), head_dim)
    kind = header.text("llama.rope.scaling.type", "none")
    if kind == "none":
        return ()
    if kind == "linear":
        return linear_scaling(str(header.path), header.number("llama.rope.scaling.factor"))
    raise GraphError(f"{header.path}: rope scaling of type {kind!r}; supported: none, linear")


def _refuse_unsupported(header: GgufHeader) -> None:
    if header.integer("llama.expert_count", 0) > 0:
        raise GraphError(f"{header.path}: a mixture of experts; supported: dense Llama models")
    if header.integer("split.count", 1) > 1:
        raise GraphError(
            f"{header.path}: one part of a model split over several files; wanted: one file",
            hint="join the parts with llama-gguf-split --merge",
        )
    for name in header.tensors:
        if name.startswith("blk.") and name.endswith(".bias"):
            raise GraphError(
                f"{header.path}: the model has biases ({name!r});"
                " supported: Llama models without biases"
            )


def _check_tensor(path: Path, tensor: TensorAt, size: int, readable: set[int]) -> None:
    """`readable` collects the types that were seen to work, so that each is tried once."""
    blocks = need("gguf.constants").GGML_QUANT_SIZES
    known = {int(kind) for kind in blocks}
    if tensor.kind not in known or not _can_dequantise(tensor.kind, readable):
        raise GraphError(f"{path}: tensor {tensor.name!r} is of a type that cannot be dequantised")
    block, _ = blocks[tensor.kind]
    if prod(tensor.shape) == 0 or tensor.shape[-1] % block:
        raise GraphError(
            f"{path}: tensor {tensor.name!r} has shape {list(tensor.shape)}; wanted: rows that are"
            f" a multiple of {block}"
        )
    end = tensor.offset + _stored_bytes(tensor)
    if end > size:
        raise GraphError(
            f"{path}: truncated GGUF: tensor {tensor.name!r} ends at byte {end}, the file at"
            f" {size}",
            hint="copy or download the file again",
        )


def _can_dequantise(kind: int, readable: set[int]) -> bool:
    if kind in readable:
        return True
    constants, quants = need("gguf.constants"), need("gguf.quants")
    typed = constants.GGMLQuantizationType(kind)
    _, size = constants.GGML_QUANT_SIZES[typed]
    try:
        quants.dequantize(np.zeros((1, size), np.uint8), typed)
    except NotImplementedError:
        return False
    readable.add(kind)
    return True


def _stored_bytes(tensor: TensorAt) -> int:
    block, size = need("gguf.constants").GGML_QUANT_SIZES[tensor.kind]
    return int(prod(tensor.shape) // block * size)


def _kind_name(kind: int) -> str:
    name: str = need("gguf.constants").GGMLQuantizationType(kind).name
    return name


def _stored(path: Path, tensor: TensorAt) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The tensor's bytes."""
    size = _stored_bytes(tensor)
    data = np.fromfile(path, np.uint8, count=size, offset=tensor.offset)
    if data.size != size:
        raise GraphError(f"{path}: truncated GGUF: tensor {tensor.name!r} is cut off")
    return data


def _dequantise(path: Path, tensor: TensorAt) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The tensor's values as f32, in memory of their own."""
    data, rows = _stored(path, tensor), prod(tensor.shape[:-1])
    joined = max(1, ROW_BYTES // (data.size // rows))
    while rows % joined:
        joined -= 1
    constants, quants = need("gguf.constants"), need("gguf.quants")
    values = quants.dequantize(
        data.reshape(rows // joined, -1), constants.GGMLQuantizationType(tensor.kind)
    )
    result: np.ndarray[Any, np.dtype[np.float32]] = values.reshape(tensor.shape)
    return result


def _half_split(rows: int, heads: int) -> torch.Tensor:
    """The places of rows [heads * d] in order, where those of a head are interleaved as (0, d/2, 1,
    d/2 + 1, ...), which is what llama.cpp's rotary embedding wants."""
    paired = torch.arange(rows).reshape(heads, rows // heads // 2, 2)
    return paired.transpose(1, 2).reshape(rows)
