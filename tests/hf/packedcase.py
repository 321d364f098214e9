"""Tiny Llama models whose linears are packed as GPTQ and AWQ pack them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hf_tiny import edit_json, tiny_model
from safetensors.torch import load_file, save_file

GROUP = 32
ORDERS = {"gptq": range(8), "awq": (0, 2, 4, 6, 1, 3, 5, 7)}
"""The column at each place of a word of AWQ."""


def words(numbers: torch.Tensor, bits: int, order: Any) -> torch.Tensor:
    """int32 words of the numbers of every row: number order[i] of each run is bits i * bits on."""
    each = 32 // bits
    runs = numbers.long().reshape(numbers.shape[0], -1, each)
    word = torch.zeros(runs.shape[:2], dtype=torch.long)
    for place in range(each):
        word |= runs[:, :, order[place]] << (bits * place)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def packed(weight: torch.Tensor, method: str, bits: int, group: int, symmetric: bool,
           shifted: bool = True) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random q, zeros and scales of the weight's shape [n, k] as a file has them, and the weight
    that they stand for."""
    n, k = weight.shape
    q = torch.randint(0, 1 << bits, (k, n))
    zeros = (torch.full((k // group, n), 1 << (bits - 1)) if symmetric
             else torch.randint(1, 1 << bits, (k // group, n)))
    scales = (torch.rand(k // group, n) * 0.05 + 0.01).half()
    order: Any = ORDERS[method] if bits == 4 else range(4)
    stored = zeros - 1 if method == "gptq" and shifted else zeros
    parts = {"qweight": words(q, bits, order) if method == "awq"
             else words(q.t(), bits, order).t().contiguous(),
             "qzeros": words(stored, bits, order), "scales": scales}
    if method == "gptq":
        parts["g_idx"] = (torch.arange(k) // group).int()
    wide = [x.float().repeat_interleave(group, 0) for x in (zeros, scales)]
    return parts, ((q - wide[0]) * wide[1]).t()


def write_packed(folder: Path, method: str, bits: int = 4, group: int = GROUP,
                 symmetric: bool = False, **config: Any) -> dict[str, torch.Tensor]:
    """A tiny Llama whose linears in layers are packed; the weights that they stand for."""
    tiny_model().save_pretrained(folder)
    weights, wanted = load_file(folder / "model.safetensors"), {}
    shifted = config.get("checkpoint_format") != "gptq_v2"
    for name in [n for n in weights if n.endswith("proj.weight")]:
        parts, wanted[name] = packed(weights.pop(name), method, bits, group, symmetric, shifted)
        weights |= {f"{name.removesuffix('weight')}{part}": x for part, x in parts.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", quantization_config={
        "quant_method": method, "bits": bits, "group_size": group, **config})
    return wanted
