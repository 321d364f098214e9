"""Small models of every decoder family, and the ways in which transformers generates with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from graphdsl.builder import BuildOptions
from graphdsl.hf.replace import Replaced, replace_layers

VOCAB, KV_HEADS, HEAD_DIM = 99, 2, 10
PROMPT, NEW, WINDOW, RESERVE = 7, 20, 6, 8
"""Tokens: prompts and what comes after them cross the window, and the reserve more than once."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
ROPE = {"rope_type": "default", "rope_theta": 1e4}

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(
        **{**SIZES, "hidden_size": 40}, use_sliding_window=True, sliding_window=WINDOW,
        max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=40, n_layer=2, n_head=4, n_inner=48,
        bos_token_id=1, eos_token_id=None, pad_token_id=0),
    "glm": lambda: GlmConfig(**{**SIZES, "head_dim": 8}, attention_bias=True),
    "glm4": lambda: Glm4Config(**{**SIZES, "head_dim": 8}, attention_bias=False),
    "gemma3": lambda: Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 3}, sliding_window=WINDOW,
        layer_types=[LOCAL, GLOBAL, LOCAL], query_pre_attn_scalar=24,
        rope_parameters={LOCAL: ROPE, GLOBAL: {**ROPE, "rope_theta": 1e6}}),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2,
                                     sliding_window=None),
}


@dataclass(frozen=True)
class Pair:
    """A model as transformers has it, and a copy whose layers are replaced."""

    theirs: Any
    ours: Any
    replaced: Replaced

    def use(self, attention: str) -> None:
        """Both models attend as `attention` says ("eager" or "sdpa")."""
        for model in (self.theirs, self.ours):
            model.set_attn_implementation(attention)

    def generate(self, **options: Any) -> tuple[Any, Any]:
        """What both generate with the same options and the same seed."""
        found = []
        for model in (self.theirs, self.ours):
            torch.manual_seed(5)
            given = {k: copy.deepcopy(v) for k, v in options.items()}
            chosen = {"max_new_tokens": NEW, "do_sample": False, **given}
            found.append(model.generate(**chosen))
        return found[0], found[1]


def random_model(config: Any, seed: int = 3) -> Any:
    """A model with random weights: norms and biases too, so that none goes unnoticed."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5)
            else:
                weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    return model


def pair_of(config: Any, options: BuildOptions, reserve: int = RESERVE) -> Pair:
    theirs = random_model(config)
    ours = copy.deepcopy(theirs)
    return Pair(theirs, ours, replace_layers(ours, options, reserve))


def prompts(batch: int = 1, tokens: int = PROMPT) -> Tensor:
    """Ids [batch, tokens], none of them that of padding."""
    generator = torch.Generator().manual_seed(batch + tokens)
    return torch.randint(3, VOCAB, (batch, tokens), generator=generator)


def padded() -> dict[str, Tensor]:
    """Three prompts, two of them padded on the left."""
    ids, mask = prompts(3), torch.ones(3, PROMPT, dtype=torch.long)
    mask[0, :4] = mask[1, :1] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


STATIC: dict[str, Any] = {"cache_implementation": "static"}
MODES: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "greedy, static": STATIC,
    "sampled": {"do_sample": True, "temperature": 0.8},
    "sampled, static": {"do_sample": True, "top_k": 20, **STATIC},
    "beams": {"num_beams": 3},
    "beams, static": {"num_beams": 3, **STATIC},
    "no cache": {"use_cache": False},
}
"""Options of generate; each is used with one prompt and with three padded ones."""
