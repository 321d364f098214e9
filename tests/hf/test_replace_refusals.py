"""What built layers do not take: refused before anything is changed, or by the forward."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from replacecase import CONFIGS, SIZES, pair_of, prompts, random_model
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    QuantizedCache,
)
from transformers.cache_utils import Cache, DynamicIndexedLayer

import graphdsl.api
from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.hf import replace_layers as public
from graphdsl.hf.replace import replace_layers
from graphdsl.hf.stand_in import Shared

pytestmark = pytest.mark.usefixtures("one_thread")


def llama(**changes: Any) -> Any:
    return random_model(LlamaConfig(**{**SIZES, **changes}))


def on_meta() -> Any:
    model = llama()
    model.model.layers[1].mlp.up_proj.to("meta")
    return model


def quantised() -> Any:
    model = llama()
    weight = model.model.layers[1].mlp.up_proj.weight
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(
        weight.to(torch.int8), requires_grad=False)
    return model


def with_adapter() -> Any:
    model = llama()
    model.model.layers[1].mlp.up_proj.register_parameter(
        "lora", torch.nn.Parameter(torch.ones(3)))
    return model


def without_weight() -> Any:
    model = llama()
    del model.model.layers[1].mlp.up_proj
    return model


def of_another_shape() -> Any:
    model = llama()
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(40, 49, bias=False)
    return model


def too_short() -> Any:
    model = llama()
    del model.model.layers[1]
    return model


REFUSED: Mapping[str, tuple[Callable[[], Any], str]] = {
    "no model of transformers": (lambda: torch.nn.Linear(2, 2), "this is a Linear"),
    "an encoder": (lambda: BertModel(BertConfig(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8,
        vocab_size=9)), "model_type is 'bert'"),
    "biases": (lambda: llama(attention_bias=True), "LlamaConfig: 'attention_bias' is true"),
    "f64": (lambda: llama().double(), "the model is torch.float64"),
    "training": (lambda: llama(attention_dropout=0.1).train(), "with dropout 0.1"),
    "another device": (on_meta, "layers.1.mlp.up_proj.weight is on meta, wanted the CPU"),
    "quantised": (quantised, "layers.1.mlp.up_proj.weight is torch.int8"),
    "an adapter": (with_adapter, "has a weight mlp.up_proj.lora more"),
    "a weight that is missing": (without_weight, "has no weight mlp.up_proj.weight"),
    "another shape": (of_another_shape, r"weight w_up is \[49, 40\], wanted \[48, 40\]"),
    "layers that are missing": (too_short, "has no list 'layers' of 2 layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused_stay_as_they_are(case: str, options: BuildOptions) -> None:
    make, message = REFUSED[case]
    model = make()
    before = list(model.modules())
    with pytest.raises(GraphError, match=message):
        replace_layers(model, options)
    assert [id(m) for m in model.modules()] == [id(m) for m in before]
    assert not model._forward_pre_hooks


def test_attention_in_both_directions_is_refused(options: BuildOptions) -> None:
    model = llama()
    model.config.is_causal = False
    with pytest.raises(GraphError, match="'is_causal' is false; supported: causal models"):
        replace_layers(model, options)


class RemoteConfig(LlamaConfig):  # type: ignore[misc]
    """As remote code has it."""

    model_type = "chatglm"


def test_remote_code_is_refused(options: BuildOptions) -> None:
    model = LlamaForCausalLM(RemoteConfig(**SIZES))
    with pytest.raises(GraphError, match="model_type 'chatglm' has layers of its own code"):
        replace_layers(model, options)


def test_a_reserve_of_nothing_is_refused(options: BuildOptions) -> None:
    with pytest.raises(GraphError, match="reserve is 0"):
        replace_layers(llama(), options, 0)


def test_layers_are_replaced_once(options: BuildOptions) -> None:
    pair = pair_of(CONFIGS["llama"](), options)
    with pytest.raises(GraphError, match="are replaced already"):
        replace_layers(pair.ours, options)


def test_weights_are_neither_saved_nor_loaded(options: BuildOptions, tmp_path: Path) -> None:
    """A checkpoint that silently lacks the layers would be loaded with random ones."""
    pair = pair_of(CONFIGS["llama"](), options)
    weights = pair.theirs.state_dict()
    for call in (pair.ours.state_dict, lambda: pair.ours.save_pretrained(tmp_path / "saved"),
                 lambda: pair.ours.load_state_dict(weights, strict=False)):
        with pytest.raises(GraphError, match="no weights to save or to load"):
            call()
    assert not list(tmp_path.glob("saved/*.safetensors"))
    assert torch.isfinite(copy.deepcopy(pair.ours).generate(prompts(), max_new_tokens=2)).all()


@torch.no_grad()
def test_caches_that_are_refused(options: BuildOptions) -> None:
    model = pair_of(CONFIGS["llama"](), options).ours
    offloaded = DynamicCache()
    offloaded.offloading = True
    quantized = QuantizedCache.__new__(QuantizedCache)
    Cache.__init__(quantized, layers=[])
    cases = {
        "a QuantizedCache": quantized,
        "a EncoderDecoderCache": EncoderDecoderCache(DynamicCache(), DynamicCache()),
        "an offloaded DynamicCache": offloaded,
        "a DynamicIndexedLayer for layer 0": Cache(layers=[DynamicIndexedLayer()] * 2),
        "has 0 layers, and this is layer 0": Cache(layers=[]),
    }
    x = torch.zeros(1, 1, 40)
    for message, cache in cases.items():
        with pytest.raises(GraphError, match=message):
            model.model.layers[0](x, past_key_values=cache)


@torch.no_grad()
def test_cross_attention_is_refused(options: BuildOptions) -> None:
    model = pair_of(CONFIGS["gpt2"](), options).ours
    with pytest.raises(GraphError, match="a layer without cross-attention"):
        model(prompts(), encoder_hidden_states=torch.zeros(1, 2, 40))


@torch.no_grad()
def test_masks_that_are_refused() -> None:
    shared = Shared()
    for mask, message in (
            (torch.ones(2, 5), r"torch.float32 \[2, 5\]"),
            (torch.ones(2, 1, 3, 5).long(), r"torch.int64 \[2, 1, 3, 5\]"),
            (torch.ones(2, 4, 3, 5).bool(), r"torch.bool \[2, 4, 3, 5\]"),
            (torch.ones(3, 1, 3, 5).bool(), r"wanted bool or floating \[2, 1, 3, 5 or more\]"),
            (torch.ones(2, 1, 3, 4).bool(), "5 or more"),
            ("BlockMask", "is a str, wanted a tensor or None")):
        with pytest.raises(GraphError, match=message):
            shared.mask(mask, 2, 3, 2, 7)


@torch.no_grad()
def test_rows_that_see_nothing_are_finite(options: BuildOptions) -> None:
    model = pair_of(CONFIGS["llama"](), options).ours
    ids = prompts(1, 4)
    seen = torch.ones(1, 1, 4, 4).tril().bool()
    seen[..., :2] = False
    added = torch.zeros(1, 1, 4, 4).masked_fill(~seen, torch.finfo(torch.float32).min)
    endless = torch.zeros(1, 1, 4, 4).masked_fill(~seen, -torch.inf)
    found = [model(ids, attention_mask=mask).logits for mask in (seen, added, endless)]
    for logits in found:
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(logits[:, 2:], found[0][:, 2:])


@pytest.mark.parametrize("how", ["asked for", "configured"])
@pytest.mark.parametrize("name", ["output_attentions", "output_router_logits"])
@torch.no_grad()
def test_outputs_that_are_refused(options: BuildOptions, name: str, how: str) -> None:
    model = copy.deepcopy(pair_of(CONFIGS["llama"](), options).ours)
    asked = {name: True} if how == "asked for" else {}
    if not asked:
        model.set_attn_implementation("eager")
        setattr(model.config, name, True)
    with pytest.raises(GraphError, match=f"{name}=True"):
        model(prompts(), **asked)


def test_gradients_are_refused(options: BuildOptions) -> None:
    model = pair_of(CONFIGS["llama"](), options).ours
    with pytest.raises(GraphError, match="requires grad, and a built operator has no backward"):
        model(prompts())


@torch.no_grad()
def test_training_with_dropout_is_refused_later_too(options: BuildOptions) -> None:
    model = pair_of(LlamaConfig(**SIZES, attention_dropout=0.1), options).ours
    with pytest.raises(GraphError, match=r"training mode with dropout 0\.1"):
        model.train()(prompts())
    assert torch.isfinite(model.eval()(prompts()).logits).all()


@torch.no_grad()
def test_other_heads_and_hooks_are_kept(options: BuildOptions) -> None:
    """A model whose hidden states were captured before has hooks on its layers."""
    config = LlamaConfig(**SIZES, num_labels=3)
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(config).eval()
    wanted = model(prompts(), output_hidden_states=True)
    replaced = replace_layers(model, options)
    found = model(prompts(), output_hidden_states=True)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    assert len(found.hidden_states) == 3
    assert [type(layer).__name__ for layer in replaced.layers] == ["BuiltLlamaDecoderLayer"] * 2
    assert not [name for name, _ in model.named_parameters() if "layers" in name]


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = ("import sys, graphdsl.hf; "
            "assert not {'torch', 'transformers'} & sys.modules.keys(), 'imported'")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert public is graphdsl.api.replace_layers
    monkeypatch.setenv("GRAPHDSL_CACHE", str(tmp_path))
    with pytest.raises(GraphError, match="this is a int"):
        public(3)
    name = "swap_layers"
    with pytest.raises(AttributeError, match="no attribute 'swap_layers'"):
        getattr(graphdsl.hf, name)


def test_a_backend_that_reads_other_caches_is_refused() -> None:
    model = llama().half()
    before = list(model.model.layers)
    with pytest.raises(GraphError, match=r"keeps its caches as bnsd, and the ascend backend takes "
                       r"bsnd(?s:.)*AtbLayer"):
        public(model, backend="ascend")
    assert list(model.model.layers) == before
