"""A Hugging Face folder of a model with quantised weights, in the layout that GPTQ's files have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.hf.calibrate import calibrate
from graphdsl.hf.checkpoint import Checkpoint
from graphdsl.hf.extras import need
from graphdsl.hf.fields import read_json
from graphdsl.hf.gptq import Gptq, gptq
from graphdsl.hf.safetensors_weights import SINGLE
from graphdsl.layer import trace
from graphdsl.lazy import torch
from graphdsl.quant import Quant

if TYPE_CHECKING:
    from torch import Tensor

WORD = 32


def quantised_weights(checkpoint: Checkpoint, quant: Quant, texts: Sequence[Tensor],
                      seen: Callable[[str], None]) -> dict[str, Gptq]:
    """The weights of all linears of a model's Layers, by their names on disk, rounded to `quant`
    with the rows that `texts` (ids [1, tokens], all of one length) give them. `seen` is told the
    name of every weight. Weights whose rows are not whole groups are left out.

    Raises GraphError for a model that has no such weight.
    """
    family = checkpoint.settings.family
    found: dict[str, Gptq] = {}

    def rounded(param: str, weight: Tensor, gram: Tensor) -> Tensor:
        name = family.names[param]
        if not isinstance(name, str) or not quant.fits(weight.shape[1]):
            return weight
        seen(name)
        found[name] = gptq(weight, gram, quant)
        return found[name].dequantised()

    with torch.inference_mode():
        calibrate(trace(family.model(family.config), "f32"), checkpoint.param, texts, rounded)
    if not found:
        raise GraphError(f"{checkpoint.path}: no weight of it can be quantised to {quant}",
                         hint="weights are read by linear, and their rows are whole groups")
    return found


def write_folder(checkpoint: Checkpoint, quantised: Mapping[str, Gptq], quant: Quant,
                 tokenizer: Any, out: Path) -> None:
    """Writes config.json, the tokenizer and all weights into an empty folder; what is not
    quantised is f16, or bf16 where the model's own weights are. Raises GraphError for a number
    that has no room in f16."""
    dtype = torch.bfloat16 if checkpoint.settings.dtype == "bf16" else torch.float16
    tensors: dict[str, Tensor] = {}
    for name in checkpoint.names():
        if name in quantised:
            prefix = name.removesuffix("weight")
            tensors |= {prefix + part: t for part, t in packed(quantised[name]).items()}
            continue
        tensors[name] = checkpoint.tensor(name).to(dtype)
        if not bool(torch.isfinite(tensors[name]).all()):
            raise GraphError(f"{checkpoint.path}: the weight {name!r} has numbers that are not "
                             f"finite in {dtype}")
    need("safetensors.torch").save_file(tensors, out / SINGLE, metadata={"format": "pt"})
    tokenizer.save_pretrained(out)
    config = _config(checkpoint.path, out)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": quant.bits, "group_size": quant.group or -1,
        "desc_act": False, "sym": not quant.offset, "checkpoint_format": "gptq",
        "lm_head": False}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _config(path: Path, out: Path) -> dict[str, Any]:
    """The config.json of a model; that of a GGUF file as transformers makes it."""
    if path.is_dir():
        return dict(read_json(path / "config.json"))
    auto = need("transformers").AutoConfig
    auto.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True
                         ).save_pretrained(out)
    return dict(read_json(out / "config.json"))


def packed(weight: Gptq) -> dict[str, Tensor]:
    """The tensors of a weight [n, k]: qweight int32 [k / per word, n] with the values of a column
    along k from the lowest bits on; qzeros int32 [k / group, n / per word] with every zero less 1;
    scales f16 [k / group, n]; g_idx int32 [k]."""
    k, groups = weight.values.shape[1], weight.scales.shape[1]
    return {"qweight": words(weight.values, weight.bits).T.contiguous(),
            "qzeros": words(weight.zeros.T - 1, weight.bits).contiguous(),
            "scales": weight.scales.T.contiguous(),
            "g_idx": torch.arange(k, dtype=torch.int32) // (k // groups)}


def words(numbers: Tensor, bits: int) -> Tensor:
    """Rows of numbers below 2 ** bits as int32 words, the first in the lowest bits; a row that
    ends inside a word is filled with zeros."""
    each = WORD // bits
    padded = torch.nn.functional.pad(numbers.long(), (0, -numbers.shape[1] % each))
    parts = padded.reshape(len(numbers), -1, each)
    total = sum(parts[:, :, i] << (bits * i) for i in range(each))
    assert isinstance(total, torch.Tensor)
    return (total - ((total >> (WORD - 1)) << WORD)).int()


__all__ = ["packed", "quantised_weights", "words", "write_folder"]
