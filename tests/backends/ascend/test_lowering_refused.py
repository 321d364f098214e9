"""What ATB has not is refused at the user's line, with the reason and what to do instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lowercase import LLAMA, SIZES, program

from graphdsl import KVCache, Layer, Param, Value, trace
from graphdsl.backends.ascend.target import target
from graphdsl.borders.masks import with_mask
from graphdsl.errors import GraphError
from graphdsl.models import gemma, llama, mixtral
from graphdsl.ops import (
    attention,
    cast,
    concat,
    embedding,
    exp,
    gelu,
    layer_norm,
    linear,
    maximum,
    merge_heads,
    relu,
    rope,
    sigmoid,
    softmax,
    split_heads,
    take_rows,
    transpose,
)

Body = Callable[["Plain", Value, Value, Value], Value]


class Plain(Layer):
    """What a body makes of x, a mask of its own and positions, with a cache and params at hand."""

    signature = ("x[batch, tokens, hidden], m[batch, tokens, hidden], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, body: Body, config: llama.Config = LLAMA) -> None:
        self.config, self.body = config, body
        self.kv = KVCache(4, 16)
        self.w, self.g, self.table = Param(64, 64), Param(64), Param(64, 64)

    def forward(self, x: Value, m: Value, positions: Value) -> Value:
        return self.body(self, x, m, positions)


def attended(**attrs: object) -> Body:
    """Attention over the layer's cache, with these attributes."""
    def body(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
        q = split_heads(x, 4)
        kv = layer.kv.append(q, q, positions)
        y: Value = merge_heads(attention(q, kv.k, kv.v, positions, **attrs))
        return y
    return body


def uncached(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    q = split_heads(x, 4)
    y: Value = merge_heads(attention(q, q, q, positions))
    return y


def masked(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    q = split_heads(x, 4)
    kv = layer.kv.append(q, q, positions)
    y: Value = merge_heads(attention(q, kv.k, kv.v, positions, m[:, None, :, :1]))
    return y


def elsewhere(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    q = split_heads(x, 4)
    kv = layer.kv.append(q, q, positions)
    y: Value = merge_heads(attention(q, kv.k, kv.v, positions + 1))
    return y


def unread(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    q = split_heads(x, 4)
    layer.kv.append(q, q, positions)
    return x


def looked_up(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    y: Value = embedding(positions + 1, layer.table)
    return y


def picked(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    y: Value = take_rows(x, positions + 1)
    return y


def both_ropes(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    angles = cast(m[..., :8], dtype="f32")
    q = split_heads(x, 4)
    y: Value = merge_heads(rope(q, angles, angles) + rope(q, angles, angles, interleaved=True))
    return y


def turned(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    heads = transpose(split_heads(x, 4), order=(0, 2, 1, 3))
    y: Value = merge_heads(transpose(relu(heads), order=(0, 2, 1, 3)))
    return y


def batches(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    y: Value = x @ transpose(m, order=(0, 2, 1)) @ x
    return y


def joined(layer: Plain, x: Value, m: Value, positions: Value) -> Value:
    y: Value = relu(concat(x, m, axis=1))[:, :x.shape[1]]
    return y


REFUSED: dict[str, tuple[Body, str, str]] = {
    "softcap": (attended(softcap=30.0), "softcap of 30.0", "--backend cpu"),
    "window": (attended(window=4), "window of 4 over a paged cache", "policy=contiguous"),
    "no cache": (uncached, "reads no KV cache", "self.kv.append"),
    "mask": (masked, "a mask of its own", "leave the mask out"),
    "other positions": (elsewhere, "other positions", "the same positions"),
    "unread cache": (unread, "read by no attention", "of one attention together"),
    "computed ids": (looked_up, "numbers of rows are computed", "input of whole numbers"),
    "computed rows": (picked, "numbers of rows are computed", "input of the Model"),
    "ropes of both kinds": (both_ropes, "read by an interleaved rope", "on their own"),
    "heads first": (turned, "rows would not stay rows", "heads come after tokens"),
    "matmul": (batches, "matmul: ATB has no such", "multiplies by params"),
    "gelu": (lambda s, x, m, p: gelu(x), "gelu: ATB has no such", "gelu_tanh"),
    "sigmoid": (lambda s, x, m, p: sigmoid(x), "sigmoid: ATB has no such", "silu"),
    "exp": (lambda s, x, m, p: exp(x), "exp: ATB has no such", "softmax"),
    "maximum": (lambda s, x, m, p: maximum(x, m), "maximum: ATB has no such", "--backend cpu"),
    "number": (lambda s, x, m, p: x + 1.5, "add with the number 1.5: ATB's Elewise ADD takes",
               "make it a Param"),
    "number over": (lambda s, x, m, p: 1.0 / x,
                    "div with the number 1.0: ATB's Elewise REALDIV takes tensors alone",
                    "make it a Param"),
    "norm without bias": (lambda s, x, m, p: layer_norm(x, s.g, eps=1e-5), "without a bias",
                          "param of zeros"),
    "whole numbers": (lambda s, x, m, p: x * cast(cast(p, dtype="f32"), dtype="f16")[..., None],
                      "cast of i32 to f32", "rotary angles"),
    "rows that are joined": (joined, "ATB's graphs hold rows", "[batch, tokens, ...]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_atb_has_not_is_refused(case: str) -> None:
    body, reason, hint = REFUSED[case]
    with pytest.raises(GraphError) as caught:
        program(Plain(body))
    assert reason in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.loc is not None
    assert caught.value.loc.file == __file__


def test_a_table_that_is_an_input_is_refused() -> None:
    class Given(Layer):
        signature = "ids[batch, tokens]:i32, rows[9, 32] -> y[batch, tokens, 32]"

        def forward(self, ids: Value, rows: Value) -> Value:
            found: Value = embedding(ids, rows)
            return found

    with pytest.raises(GraphError, match=r"embedding: its table, f16\[9, 32\], is input 'rows'"
                       r"(?s:.)*looked up in a param") as caught:
        program(Given())
    assert caught.value.loc is not None


def test_angles_that_every_layer_makes_are_refused() -> None:
    class Own(llama.LlamaLayer):
        def __init__(self, config: llama.Config) -> None:
            super().__init__(config)
            self.angles = Param(8, 64)

        def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
            angles = cast(linear(x, self.angles), dtype="f32")
            y: Value = merge_heads(rope(split_heads(x, 4), angles, angles))
            return y

    class Several(llama.Llama):
        def __init__(self, config: llama.Config) -> None:
            super().__init__(config)
            self.layers = [Own(config) for _ in range(3)]

    with pytest.raises(GraphError, match="made where layers are") as caught:
        program(Several(LLAMA))
    assert "positions" in caught.value.hint


def test_experts_are_refused() -> None:
    config = mixtral.Config(**SIZES, head_dim=16, experts=4)
    with pytest.raises(GraphError, match="topk: ATB has no such operation") as caught:
        program(mixtral.MixtralLayer(config))
    assert "--backend cpu" in caught.value.hint


def test_attention_that_is_not_causal_is_refused() -> None:
    with pytest.raises(GraphError, match="not causal, over a KV cache") as caught:
        program(Plain(attended(causal=False)), policy="contiguous")
    assert "has causal attention" in caught.value.hint


def test_masks_of_a_contiguous_cache_are_bool_inputs() -> None:
    layer = llama.LlamaLayer(LLAMA)
    made = program(with_mask(trace(layer, "f16"), "bool"), policy="contiguous")
    mask = next(each for each in made.prepared if each.kind == "mask")
    assert mask.of == ("positions", "mask")
    assert next(port for port in made.ports if port.name == "mask").host
    for kind in ("f16", "f32"):
        with pytest.raises(GraphError, match=rf"mask of attention is {kind}\[.*input of bool\["):
            program(with_mask(trace(layer, "f16"), kind), policy="contiguous")
    with pytest.raises(GraphError, match=r"a mask of its own, bool\[.*over a paged cache"):
        program(with_mask(trace(layer, "f16"), "bool"))
    with pytest.raises(GraphError, match="mask of attention is computed"):
        program(Plain(masked), policy="contiguous")


def test_a_weight_that_is_an_input_is_refused() -> None:
    class Given(Layer):
        signature = "x[batch, tokens, hidden], w[hidden, hidden] -> y[batch, tokens, hidden]"

        def __init__(self, config: llama.Config = LLAMA) -> None:
            self.config = config

        def forward(self, x: Value, w: Value) -> Value:
            y: Value = linear(x, w)
            return y

    with pytest.raises(GraphError, match="computed at every step") as caught:
        program(Given())
    assert "multiplies by params" in caught.value.hint


def test_norms_with_weights_in_f32_are_refused() -> None:
    with pytest.raises(GraphError, match=r"f32\[64\] beside f16") as caught:
        program(gemma.Gemma(gemma.Config(**SIZES, head_dim=16)))
    assert 'cast(weight, dtype="f16")' in caught.value.hint
    assert caught.value.loc is not None
    assert caught.value.loc.file.endswith("gemma.py")


def test_f32_is_refused_with_the_reason() -> None:
    with pytest.raises(GraphError, match="f16 and bf16 only") as caught:
        program(llama.LlamaLayer(LLAMA), dtype="f32")
    assert caught.value.hint == "--dtype f16"


def test_bf16_is_refused_on_a_310p() -> None:
    with pytest.raises(GraphError, match="bf16") as caught:
        program(llama.LlamaLayer(LLAMA), dtype="bf16", soc="310p")
    assert "f16" in caught.value.hint


def test_an_unknown_soc_is_refused() -> None:
    with pytest.raises(GraphError, match="no SoC 910a") as caught:
        target("910a")
    assert caught.value.hint == "SoCs: 910b, 310p"


def test_a_layer_without_tokens_is_refused() -> None:
    class Lone(Layer):
        signature = "x[4] -> y[4]"

        def forward(self, x: Value) -> Value:
            y: Value = relu(x)
            return y

    with pytest.raises(GraphError, match="has no tokens"):
        program(Lone())


def test_caches_of_two_policies_are_refused() -> None:
    class Two(llama.LlamaLayer):
        def __init__(self, config: llama.Config) -> None:
            super().__init__(config)
            self.other = KVCache(2, 16, layout="bsnd")

        def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
            q = split_heads(x, 4)
            k = split_heads(x[..., :32], 2)
            a = self.kv.append(k, k, positions)
            b = self.other.append(k, k, positions)
            y: Value = merge_heads(attention(q, a.k, a.v, positions)
                                   + attention(q, b.k, b.v, positions))
            return y

    with pytest.raises(GraphError, match="has caches of"):
        program(Two(LLAMA))


@pytest.mark.parametrize("result", ["x", "p"])
def test_results_that_nothing_computes_are_refused(result: str) -> None:
    class Same(Layer):
        signature = f"x[batch, tokens, 64] -> y{'[batch, tokens, 64]' if result == 'x' else '[64]'}"

        def __init__(self) -> None:
            self.p = Param(64)

        def forward(self, x: Value) -> Value:
            return x if result == "x" else self.p

    with pytest.raises(GraphError, match=f"Same: output0 is '{result}' as it is") as caught:
        program(Same())
    assert caught.value.hint == "return what is computed of it"


def test_columns_of_any_number_are_refused() -> None:
    class Square(Layer):
        signature = "x[batch, tokens, tokens] -> y[batch, tokens, tokens]"

        def forward(self, x: Value) -> Value:
            return softmax(x)

    with pytest.raises(GraphError, match=r"softmax: the last size of .* is tokens") as caught:
        program(Square())
    assert caught.value.loc is not None
