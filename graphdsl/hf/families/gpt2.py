"""GPT-2 in config.json."""

from __future__ import annotations

from graphdsl.hf.family import Family, family_of, want
from graphdsl.hf.fields import Fields
from graphdsl.models.gpt2 import GPT2, Config, weight_names

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # three names of one function
EOS = (50256,)  # what GPT2Config of transformers takes when the file does not say


def read(fields: Fields) -> Family:
    """model_type gpt2. Raises GraphError for other activations, scores that are scaled in another
    way, and cross-attention."""
    fields.choice("activation_function", ACTIVATIONS, "gelu_new")
    fields.only("scale_attn_weights", True, "scores divided by sqrt(head_dim)")
    fields.only("scale_attn_by_inverse_layer_idx", False, "scores scaled alike in all layers")
    fields.only("add_cross_attention", False, "decoders without cross-attention")
    hidden, max_positions = fields.integer("n_embd", 768), fields.integer("n_positions", 1024)
    config = Config(
        vocab=fields.integer("vocab_size", 50257),
        max_positions=max_positions,
        hidden=hidden,
        layers=fields.integer("n_layer", 12),
        heads=fields.integer("n_head", 12),
        ffn=fields.integer("n_inner", 4 * hidden),
        eps=fields.number("layer_norm_epsilon", 1e-5),
        tied=fields.flag("tie_word_embeddings", True),
    )
    divides = config.heads >= 1 and hidden % config.heads == 0
    want(divides, str(fields.path), f"{config.heads} heads share 'n_embd' {hidden}",
         "a number of heads that divides it")
    return family_of(fields.path, GPT2, config, weight_names, max_positions, EOS, "transformer.")
