"""ChatGLM2 in plain torch, written from its description, and as the folder that its files make.

Team GLM, ChatGLM: A Family of Large Language Models, arXiv 2406.12793: layers that normalise
first, RMS norms (arXiv 1910.07467), SwiGLU (arXiv 2002.05202), attention whose heads share a few
keys and values (arXiv 1911.02150, 2305.13245), and rotary positions (arXiv 2104.09864) on one half
of every head, where channels 2i and 2i + 1 are the plane i.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """What a config.json of ChatGLM2 says. The positions of its 32k variant go `slower` times as
    slowly; its successors have another `base`."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    ffn: int
    eps: float
    qkv_bias: bool
    base: float = 10000.0
    slower: float = 1.0

    def fields(self) -> dict[str, Any]:
        """The entries of config.json."""
        return {
            "model_type": "chatglm", "padded_vocab_size": self.vocab, "hidden_size": self.hidden,
            "num_layers": self.layers, "num_attention_heads": self.heads,
            "kv_channels": self.head_dim, "multi_query_attention": True,
            "multi_query_group_num": self.groups,
            "ffn_hidden_size": self.ffn, "layernorm_epsilon": self.eps, "rmsnorm": True,
            "add_qkv_bias": self.qkv_bias, "add_bias_linear": False, "post_layer_norm": True,
            "apply_residual_connection_post_layernorm": False, "seq_length": 64,
            "torch_dtype": "float32", "eos_token_id": 2, "tie_word_embeddings": False,
            "original_rope": True, **self._ratio()}

    def _ratio(self) -> dict[str, Any]:
        if self.slower != 1.0:
            return {"rope_ratio": self.slower, "_name_or_path": "THUDM/chatglm2-6b-32k"}
        return {"rope_ratio": self.base / 10000.0} if self.base != 10000.0 else {}


def drawn_sizes(dice: random.Random) -> Sizes:
    """Every kind of sharing, one group for all heads among them."""
    groups = dice.choice([1, 1, 2, 3])
    return Sizes(
        vocab=dice.randint(20, 70), hidden=dice.randint(8, 50), layers=dice.randint(1, 3),
        heads=groups * dice.choice([1, 2, 3, 4]), groups=groups, head_dim=4 * dice.randint(1, 6),
        ffn=dice.randint(7, 60), eps=dice.choice([1e-5, 1e-2]), qkv_bias=dice.random() < 0.7,
        base=dice.choice([1e4, 5e6]))


class ChatGLM2(torch.nn.Module):
    """The whole sequence at once, without a cache: model(ids, mask, positions).logits."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        s = sizes
        shapes = {"transformer.embedding.word_embeddings.weight": (s.vocab, s.hidden),
                  "transformer.encoder.final_layernorm.weight": (s.hidden,),
                  "transformer.output_layer.weight": (s.vocab, s.hidden)}
        merged = (s.heads + 2 * s.groups) * s.head_dim
        for i in range(s.layers):
            own = {"input_layernorm.weight": (s.hidden,),
                   "self_attention.query_key_value.weight": (merged, s.hidden),
                   "self_attention.dense.weight": (s.hidden, s.heads * s.head_dim),
                   "post_attention_layernorm.weight": (s.hidden,),
                   "mlp.dense_h_to_4h.weight": (2 * s.ffn, s.hidden),
                   "mlp.dense_4h_to_h.weight": (s.hidden, s.ffn)}
            if s.qkv_bias:
                own["self_attention.query_key_value.bias"] = (merged,)
            shapes |= {f"transformer.encoder.layers.{i}.{n}": shape for n, shape in own.items()}
        self.weights = {name: torch.nn.Parameter(torch.empty(shape), requires_grad=False)
                        for name, shape in shapes.items()}
        for name, weight in self.weights.items():
            self.register_parameter(name.replace(".", "_"), weight)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None,
                position_ids: Tensor | None = None) -> SimpleNamespace:
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        positions = mask.cumsum(1) - 1 if position_ids is None else position_ids
        x = self.weights["transformer.embedding.word_embeddings.weight"][ids]
        for i in range(self.sizes.layers):
            x = self._layer(f"transformer.encoder.layers.{i}.", x, mask, positions)
        x = self._norm("transformer.encoder.final_layernorm.weight", x)
        return SimpleNamespace(logits=x @ self.weights["transformer.output_layer.weight"].T)

    def _layer(self, prefix: str, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        h = self._norm(f"{prefix}input_layernorm.weight", x)
        attended = self._attention(f"{prefix}self_attention.", h, mask, positions)
        x = x + attended @ self.weights[f"{prefix}self_attention.dense.weight"].T
        h = self._norm(f"{prefix}post_attention_layernorm.weight", x)
        wide = h @ self.weights[f"{prefix}mlp.dense_h_to_4h.weight"].T
        gate, up = wide[..., :self.sizes.ffn], wide[..., self.sizes.ffn:]
        gated = gate / (1 + torch.exp(-gate)) * up
        return x + gated @ self.weights[f"{prefix}mlp.dense_4h_to_h.weight"].T

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.sizes.eps).sqrt() * self.weights[name]

    def _attention(self, prefix: str, h: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """[batch, tokens, heads * head_dim], head by head."""
        s = self.sizes
        merged = h @ self.weights[f"{prefix}query_key_value.weight"].T
        if s.qkv_bias:
            merged = merged + self.weights[f"{prefix}query_key_value.bias"]
        parts = torch.split(merged, s.head_dim, dim=-1)
        queries, keys = parts[:s.heads], parts[s.heads:s.heads + s.groups]
        values = parts[s.heads + s.groups:]
        tokens = h.shape[1]
        hidden = torch.ones(tokens, tokens).triu(1).bool() | (mask == 0)[:, None]
        found = []
        for head, query in enumerate(queries):
            group = head * s.groups // s.heads
            q, k = self._turned(query, positions), self._turned(keys[group], positions)
            scores = q @ k.transpose(1, 2) / s.head_dim ** 0.5
            # A large number, not infinity: a row of padding sees nothing and may hold anything.
            weights = scores.masked_fill(hidden, -1e9).softmax(-1)
            found.append(weights @ values[group])
        return torch.cat(found, dim=-1)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[batch, tokens, head_dim]: plane i of the first half turned by position * base^(-4i /
        head_dim), as a complex number."""
        s = self.sizes
        half = s.head_dim // 2
        speeds = s.base ** (-torch.arange(0, half, 2) / half) / s.slower
        angles = positions[..., None] * speeds
        planes = torch.view_as_complex(x[..., :half].reshape(*x.shape[:-1], -1, 2).contiguous())
        turned = torch.view_as_real(planes * torch.polar(torch.ones_like(angles), angles))
        return torch.cat((turned.flatten(-2), x[..., half:]), dim=-1)

    def save(self, folder: Path) -> None:
        """Writes config.json and the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.sizes.fields()))
        save_file({name: w.data for name, w in self.weights.items()}, folder / "model.safetensors")
