"""Tiny Llama models with random weights, as transformers and gguf write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from graphdsl.hf.gguf_weights import gguf_name

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def tiny_model(**changes: Any) -> LlamaForCausalLM:
    """hidden 64, 2 layers, 4 heads over 2 kv heads, 99 ids."""
    sizes: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Larger than the initial weights: then no token is far likelier than the others.
            weight.copy_(torch.randn_like(weight) * 0.2 + (weight.ndim == 1))
    return model


def edit_json(path: Path, **changes: Any) -> None:
    """Sets entries of a JSON file; a change to None takes the entry out."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of q or k as llama.cpp stores them: (0, d/2, 1, d/2 + 1, ...) of each head."""
    size = weight.shape[0] // heads
    order = [h * size + half * size // 2 + i
             for h in range(heads) for i in range(size // 2) for half in (0, 1)]  # fmt: skip
    return weight[order]


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    fields: Sequence[tuple[str, Any]] = (),
    extra: Sequence[tuple[str, np.ndarray]] = (),
    architecture: str = "llama",
    tokenizer: Any = None,
) -> None:
    """The model as llama.cpp's converter would write it; matrices are quantised to `kind`."""
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer)
    for key, value in fields:
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for name, weight in gguf_weights(model):
        whole = weight.ndim == 1
        chosen = GGMLQuantizationType.F32 if whole else kind
        writer.add_tensor(gguf_name(name), quantize(weight.numpy(), chosen), raw_dtype=chosen)
    for name, values in extra:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: GGUFWriter, tokenizer: Any) -> None:
    """A byte-level tokenizer in the fields that GGUF has for it."""
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in inner["added_tokens"]}
    vocab = sorted(inner["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if i in special else 1 for _, i in vocab])
    writer.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    writer.add_chat_template(tokenizer.chat_template)


def gguf_weights(model: LlamaForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    tied = model.config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        if "q_proj" in name:
            weight = interleaved(weight, model.config.num_attention_heads)
        if "k_proj" in name:
            weight = interleaved(weight, model.config.num_key_value_heads)
        yield name, weight


@dataclass
class TorchSession:
    """A Session by transformers. Its cache holds padding, so it keeps a mask beside it."""

    model: LlamaForCausalLM
    cache: DynamicCache
    capacity: int
    mask: torch.Tensor

    def step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert ids.dtype == torch.int64
        assert positions.dtype == torch.int32
        assert int(positions.max()) < self.capacity
        self.mask = torch.cat([self.mask, (positions >= 0).long()], 1)
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions.long().clamp(min=0),
            past_key_values=self.cache,
        )
        return output.logits[:, -1]


@dataclass(frozen=True)
class TorchModel:
    """A StepModel by transformers."""

    model: LlamaForCausalLM

    @property
    def vocab(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def max_positions(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def start(self, batch: int, capacity: int) -> TorchSession:
        mask = torch.zeros(batch, 0, dtype=torch.int64)
        return TorchSession(self.model, DynamicCache(), capacity, mask)
