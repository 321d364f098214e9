"""Hugging Face folders: every spelling reads to the same settings, every damage is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import LLAMA3, edit_json, tiny_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from graphdsl.errors import GraphError
from graphdsl.hf.checkpoint import Checkpoint, open_checkpoint
from graphdsl.hf.families import READERS
from graphdsl.ops.position import rope_frequencies


def assert_same_weights(found: Checkpoint, model: LlamaForCausalLM) -> None:
    wanted = model.state_dict()
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert set(found.names()) == set(wanted)
    for name in found.names():
        assert torch.equal(found.tensor(name), wanted[name]), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    found = open_checkpoint(tmp_path)
    config = found.settings.family.config
    assert config.tied == tied
    assert_same_weights(found, model)
    assert (config.vocab, config.hidden, config.layers, config.ffn) == (99, 64, 2, 96)
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.eps, config.theta, config.scaling, config.window) == (1e-6, 10000.0, (), 0)
    settings = found.settings
    assert (settings.vocab, settings.layers, settings.max_positions) == (99, 2, 64)
    assert (settings.bos, settings.eos, settings.dtype) == (1, (2,), "f32")


def test_sharded_bf16(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = open_checkpoint(tmp_path)
    assert found.settings.dtype == "bf16"
    assert found.tensor("model.norm.weight").dtype == torch.bfloat16
    assert_same_weights(found, model)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", ["default", "linear", "llama3"])
def test_rope_in_both_spellings(tmp_path: Path, old: bool, kind: str) -> None:
    parameters = {**LLAMA3, "rope_type": kind, "rope_theta": 5e4}
    if kind != "llama3":
        parameters = {k: parameters[k] for k in ("rope_type", "rope_theta", "factor")}
    if kind == "default":
        del parameters["factor"]
    model = tiny_model(rope_parameters=parameters)
    model.save_pretrained(tmp_path)
    if old:
        scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
        if kind == "linear":
            scaling["type"] = scaling.pop("rope_type")
        edit_json(
            tmp_path / "config.json",
            rope_parameters=None,
            rope_theta=5e4,
            rope_scaling=None if kind == "default" else scaling,
            dtype=None,
            torch_dtype="float16",
        )
    settings = open_checkpoint(tmp_path).settings
    assert settings.dtype == ("f16" if old else "f32")
    config = settings.family.config
    assert config.theta == 5e4
    scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
    assert dict(config.scaling) == ({} if kind == "default" else scaling)
    frequencies = rope_frequencies.function(
        rotary_dim=config.head_dim, theta=config.theta, scaling=config.scaling)
    assert torch.equal(frequencies, model.model.rotary_emb.inv_freq)


def test_what_an_old_file_leaves_out(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        head_dim=None,
        num_key_value_heads=None,
        attention_bias=None,
        mlp_bias=None,
        eos_token_id=None,
        rope_parameters=None,
    )
    with pytest.raises(GraphError, match=r"k_proj.weight' has shape \[32, 64\]; wanted: \[64, 64"):
        open_checkpoint(folder)
    edit_json(folder / "config.json", num_key_value_heads=2)
    settings = open_checkpoint(folder).settings
    config = settings.family.config
    assert (config.head_dim, config.kv_heads, settings.eos) == (16, 2, (2,))
    assert config.theta == 10000.0


def test_generation_config_has_the_last_word_on_eos(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[5, 6])
    assert open_checkpoint(folder).settings.eos == (5, 6)
    edit_json(folder / "generation_config.json", eos_token_id=None)
    assert open_checkpoint(folder).settings.eos == (2,)


def test_weights_that_the_model_does_not_know_do_not_matter(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(weights, folder / "model.safetensors")
    found = open_checkpoint(folder)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in found.names()
    with pytest.raises(GraphError, match="the model has no weight 'x'"):
        found.tensor("x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "'gpt_neox'; supported: " + ", ".join(READERS)),
        ({"model_type": None}, "'model_type' is missing"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "'hidden_size' is '64'; wanted: a whole number"),
        ({"hidden_size": True}, "'hidden_size' is True; wanted: a whole number"),
        ({"num_hidden_layers": 0}, "layers is 0; wanted: at least 1"),
        ({"num_hidden_layers": 10**9}, "layers is 1000000000; wanted: at most"),
        ({"num_attention_heads": 5, "head_dim": None}, "not a multiple of 'num_attention_heads' 5"),
        ({"num_attention_heads": 0, "head_dim": None}, "'num_attention_heads' 0"),
        ({"num_key_value_heads": 3}, "4 heads share 3 kv heads"),
        ({"num_key_value_heads": 0}, "kv_heads is 0"),
        ({"head_dim": 15}, "head_dim is 15; wanted: an even number"),
        ({"rms_norm_eps": -1.0}, "eps is -1.0; wanted: above 0"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan; wanted: a finite number"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps' is 'small'; wanted: a number"),
        ({"hidden_act": "relu"}, "'hidden_act' is 'relu'; supported: 'silu'"),
        ({"hidden_act": 3}, "'hidden_act' is 3; wanted: a text"),
        ({"attention_bias": True}, "'attention_bias' is true"),
        ({"mlp_bias": True}, "'mlp_bias' is true"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1; wanted: true or false"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ({"dtype": "int4"}, "'dtype' is 'int4'; supported: float32"),
        ({"rope_parameters": [1]}, r"'rope_parameters' is \[1\]; wanted: an object"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn'; supported: default, linear, llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor is 0.0; wanted: above"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "wanted: 0 < low < high"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "theta is -1.0; wanted: above 0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor' is not 1"),
        ({"vocab_size": 98}, r"embed_tokens.weight' has shape \[99, 64\]; wanted: \[98, 64\]"),
        ({"num_hidden_layers": 3}, "'model.layers.2.input_layernorm.weight' is missing and 8 oth"),
    ],
)
def test_wrong_config(folder: Path, change: dict[str, Any], message: str) -> None:
    edit_json(folder / "config.json", **change)
    with pytest.raises(GraphError, match=message) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("eos", "message"),
    [
        ("end", "'eos_token_id' is 'end'; wanted: a token id"),
        (99, "eos id 99; wanted: an id below"),
    ],
)
def test_wrong_eos(folder: Path, eos: Any, message: str) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=eos)
    with pytest.raises(GraphError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "lla', "config.json: not valid JSON"),
        (b"", "config.json: not valid JSON"),
        (b"\xff\xfe", "config.json: not valid JSON"),
        (b"[" * 100_000, "config.json: not valid JSON"),
        (b"[1]", "config.json: holds a list; wanted: a JSON object"),
    ],
)
def test_broken_config(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(GraphError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 5, 100, 2000, -1])
def test_truncated_weights(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(GraphError, match=r"model.safetensors: not a whole safetensors file"):
        open_checkpoint(folder)


def test_damaged_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[:8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(GraphError, match="not a whole safetensors file"):
        open_checkpoint(folder)


def test_a_weight_of_integers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int32)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(GraphError, match=r"'model.norm.weight' is of type I32; supported: F32"):
        open_checkpoint(folder)


def test_an_untied_head_that_is_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(GraphError, match=r"the weight 'lm_head.weight' is missing$"):
        open_checkpoint(folder)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    return tmp_path / "sharded"


def test_a_missing_shard(sharded: Path) -> None:
    next(iter(sorted(sharded.glob("*.safetensors")))).unlink()
    with pytest.raises(GraphError, match=r"00001-of-.*: no such file; model.safetensors.index"):
        open_checkpoint(sharded)


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(GraphError, match=r"00002-of-.* not a whole safetensors file"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../x.safetensors", "lies in '../x.safetensors'; wanted: a file name"),
        (3, "lies in 3; wanted: a file name"),
        ("model-00001-of-0000N.safetensors", "is not in it; model.safetensors.index.json says so"),
    ],
)
def test_a_wrong_index(sharded: Path, file: Any, message: str) -> None:
    index = sharded / "model.safetensors.index.json"
    place = json.loads(index.read_text())["weight_map"]
    files = sorted(set(place.values()))
    if file == "model-00001-of-0000N.safetensors":
        file = next(f for f in files if f != place["model.norm.weight"])
    edit_json(index, weight_map={**place, "model.norm.weight": file})
    with pytest.raises(GraphError, match=message):
        open_checkpoint(sharded)


@pytest.mark.parametrize("place", [None, [], {}])
def test_an_index_without_a_map(sharded: Path, place: Any) -> None:
    edit_json(sharded / "model.safetensors.index.json", weight_map=place)
    with pytest.raises(GraphError, match="'weight_map' is missing, empty or not an object"):
        open_checkpoint(sharded)


def test_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(GraphError, match=r"pickle are not read.*\n.*convert them to safetensors"):
        open_checkpoint(folder)
    with pytest.raises(GraphError, match="weights as pickle are not read"):
        open_checkpoint(folder / "pytorch_model.bin")


def test_wrong_paths(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="nowhere: no such file or folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(GraphError, match=r"wanted: the folder with its config.json"):
        open_checkpoint(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(GraphError, match=r"no weights: neither model.safetensors nor"):
        open_checkpoint(folder)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(GraphError, match=r"it has no config.json\n  hint: name the file .*x.gguf"):
        open_checkpoint(tmp_path)
