"""The packaged model as files of other kinds, with the same numbers: GGUF for llama.cpp, a Hugging
Face folder for those that convert from one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch
from smollm2 import peer

from graphdsl.builder import BuildOptions
from graphdsl.hf.model import open_model
from graphdsl.hf.tokenizer import load_tokenizer

KINDS = {"BF16": (gguf.GGMLQuantizationType.BF16, 32), "Q8_0": (gguf.GGMLQuantizationType.Q8_0, 7),
         "Q4_0": (gguf.GGMLQuantizationType.Q4_0, 2)}
"""What matrices become, and the number that a GGUF file has for its kind."""
OWN = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture",
       "general.file_type", "general.quantization_version")
"""Fields that are written anew."""


def gguf_of(source: Path, kind: str, folder: Path) -> Path:
    """The GGUF file `source` with all matrices dequantised and put into `kind`, by gguf's own
    quantisers; norms stay f32. Made once and kept in `folder`."""
    target = folder / f"{source.stem.partition('.')[0]}.{kind}.gguf"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / target.name
        _write(gguf.GGUFReader(source), made, *KINDS[kind])
        os.replace(made, target)
    return target


def _write(reader: Any, target: Path, kind: Any, file_type: int) -> None:
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name not in OWN:
            nested = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], nested)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in reader.tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, wide)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(wide, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def folder_of(source: Path, folder: Path) -> Path:
    """A Hugging Face folder of the model in bf16, tokenizer included, made once in `folder`."""
    target = folder / "hugging_face"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / target.name
        wide_model(source).bfloat16().save_pretrained(made)
        load_tokenizer(source, folder).save_pretrained(made)
        os.replace(made, target)
    return target


def wide_model(source: Path) -> Any:
    """transformers' model with the weights of the file in f32."""
    return peer(open_model(source, BuildOptions(cache=source.parent)), torch.float32)
