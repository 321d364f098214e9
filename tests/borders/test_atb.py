"""The calls of ATB's torch example on a built layer, against transformers' own layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from atbcase import (
    BATCH,
    MOST,
    PADDED,
    PROMPT,
    SIZES,
    STEPS,
    Masks,
    Theirs,
    added,
    atb_mask,
    bool_padded,
    drawn_step,
    empty,
    flat,
    no_mask,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphdsl.borders.atb import AtbLayer
from graphdsl.builder import BuildOptions
from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.layer import KVCache, Layer
from graphdsl.models import llama
from graphdsl.ops import attention

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    return Theirs.drawn()


@pytest.fixture
def built(options: BuildOptions) -> AtbLayer:
    """Found in the cache after the first test."""
    return AtbLayer(llama.LlamaLayer(SIZES), options, reserve=32)


class Copies(TorchDispatchMode):
    """The numbers that torch's own copies move, those of index_select and cat among them."""

    NAMES = ("copy_", "clone", "_to_copy", "cat", "index_select", "contiguous", "index")

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.NAMES:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("masks", [bool_padded, added, flat, no_mask])
def test_a_prompt_and_five_tokens(built: AtbLayer, theirs: Theirs, masks: Masks) -> None:
    theirs = Theirs(theirs.layer)
    padding = PADDED if masks in (bool_padded, added) else (0, 0)
    tables, weights, past, seen = theirs.tables, theirs.weights, empty(), 0
    for number in range(STEPS + 1):
        x = drawn_step(number)
        tokens = x.shape[1]
        at = (torch.arange(seen, seen + tokens) - torch.tensor(padding)[:, None]).clamp(min=0)
        mask = masks(tokens, seen)
        with Copies() as copies:
            y, *present = built.execute([x, *weights, at, *tables, mask, *past])
        mask = atb_mask(tokens, seen) if mask is None or mask.dim() == 2 else mask
        wanted, *rows = theirs.step(x, at, mask)
        assert bool(torch.isfinite(y).all())
        for row, gap in enumerate(padding):
            first = max(gap - seen, 0)
            torch.testing.assert_close(y[row, first:], wanted[row, first:], rtol=0, atol=TOLERANCE)
        for ours, other in zip(present, rows, strict=True):
            torch.testing.assert_close(ours, other, rtol=0, atol=TOLERANCE)
            assert ours.is_contiguous()
        if number:
            assert copies.largest < min(past[0].numel(), x.numel() + tables[0].numel())
            assert past[0].data_ptr() == present[0].data_ptr()
        past, seen = present, seen + tokens
    assert built.copied_bytes == 0


def call(theirs: Theirs, **changes: Any) -> list[Any]:
    """A whole call: three tokens that come after two."""
    tensors: dict[str, Any] = {
        "hidden": torch.ones(BATCH, 3, SIZES.hidden), "weights": theirs.weights,
        "position_ids": torch.arange(2, 5).expand(BATCH, 3), "cos_table": theirs.tables[0],
        "sin_table": theirs.tables[1], "mask": atb_mask(3, 2),
        "past_key": torch.ones(2, BATCH, SIZES.kv_heads, SIZES.head_dim),
        "past_value": torch.ones(2, BATCH, SIZES.kv_heads, SIZES.head_dim)} | changes
    hidden, weights, *rest = tensors.values()
    return [hidden, *weights, *rest]


def test_a_past_of_others_is_taken_in(built: AtbLayer, theirs: Theirs) -> None:
    theirs = Theirs(theirs.layer)
    x, at = drawn_step(0), torch.arange(PROMPT).expand(BATCH, PROMPT)
    _, *past = theirs.step(x, at, atb_mask(PROMPT, 0))
    at = torch.full((BATCH, 1), PROMPT)
    copies = [t.clone() for t in past]
    wanted, *rows = theirs.step(drawn_step(1), at, None)
    y, *present = built.execute([drawn_step(1), *theirs.weights, at, *theirs.tables, None, *copies])
    assert built.copied_bytes == 2 * past[0].numel() * 4
    torch.testing.assert_close(y, wanted, rtol=0, atol=TOLERANCE)
    for ours, other in zip(present, rows, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=TOLERANCE)


def test_inside_and_outside_of_inference_mode(built: AtbLayer, theirs: Theirs) -> None:
    with torch.inference_mode():
        before = built.execute(call(theirs))
    after = built.execute(call(theirs, past_key=PAST.clone(), past_value=PAST.clone()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_buffer_grows(options: BuildOptions, theirs: Theirs) -> None:
    layer, past, again = AtbLayer(llama.LlamaLayer(SIZES), options, reserve=1), empty(), empty()
    at = torch.zeros(BATCH, 1, dtype=torch.int64)
    roomy = AtbLayer(llama.LlamaLayer(SIZES), options)
    for number in range(1, 6):
        given = [drawn_step(number), *theirs.weights, at, *theirs.tables, None]
        y, *past = layer.execute([*given, *past])
        other, *again = roomy.execute([*given, *again])
        assert torch.equal(y, other)
        assert torch.equal(past[0], again[0])
    assert (layer.copied_bytes > 0, roomy.copied_bytes) == (True, 0)


def test_a_new_sequence_leaves_the_present_of_the_last_one(built: AtbLayer,
                                                            theirs: Theirs) -> None:
    def prompt(number: int) -> list[Tensor]:
        x = drawn_step(0) + number
        return built.execute([x, *theirs.weights, torch.arange(PROMPT).expand(BATCH, PROMPT),
                              *theirs.tables, None, *empty()])

    _, *first = prompt(1)
    before = [t.clone() for t in first]
    prompt(2)
    assert all(torch.equal(a, b) for a, b in zip(first, before, strict=True))


def test_weights_are_packed_once(built: AtbLayer, theirs: Theirs,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    from graphdsl.runtime.operator import Operator

    packed: list[str] = []
    pack = Operator.pack_weights

    def counted(self: Operator, weights: dict[str, Tensor]) -> list[Tensor]:
        packed.append(self.name)
        return pack(self, weights)

    monkeypatch.setattr(Operator, "pack_weights", counted)
    weights = theirs.weights
    for mask in (None, atb_mask(3, 2), added(3, 2)):
        built.execute(call(theirs, weights=weights, mask=mask))
    assert len(packed) == 1
    other = [w.clone() for w in weights]
    y = built.execute(call(theirs, weights=[w * 0.5 for w in weights]))[0]
    z = built.execute(call(theirs, weights=other))[0]
    assert len(packed) == 3
    assert not torch.equal(y, z)


def outputs(rows: int = 5, hidden: tuple[int, ...] = (BATCH, 3, 64)) -> list[Tensor]:
    present = (rows, BATCH, SIZES.kv_heads, SIZES.head_dim)
    return [torch.empty(shape) for shape in (hidden, present, present)]


def test_results_into_tensors_that_are_given(built: AtbLayer, theirs: Theirs) -> None:
    made = outputs()
    built.execute_out(call(theirs), made)
    wanted = built.twin().execute(call(theirs))
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


@pytest.mark.parametrize(("given", "message"), [
    (outputs()[:2], "2 outputs given, 3 wanted"),
    (outputs(rows=6), r"the output present_key is .* \[6, 2, 2, 16\] .*\[5, 2, 2, 16\]"),
    (outputs(hidden=(BATCH, 2, 64)), r"the output hidden is .* \[2, 2, 64\]"),
    ([t.half() for t in outputs()], r"the output hidden is torch\.float16"),
    ([None, *outputs()[1:]], "the output hidden is a NoneType, wanted a torch.Tensor"),
])
def test_outputs_that_do_not_fit(built: AtbLayer, theirs: Theirs, given: list[Tensor],
                                 message: str) -> None:
    with pytest.raises(GraphError, match=f"LlamaLayer: {message}"):
        built.execute_out(call(theirs), given)
    assert built.copied_bytes == 0


def test_twins_share_builds_alone(built: AtbLayer, theirs: Theirs) -> None:
    first, other = built.execute(call(theirs)), built.twin()
    assert other.copied_bytes == 0
    other.set_name("other")
    with pytest.raises(GraphError, match=r"^other: 1 tensors given"):
        other.execute([None])
    with pytest.raises(GraphError, match=r"^LlamaLayer: 1 tensors given"):
        built.execute([None])
    again = other.execute(call(theirs))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert {t.data_ptr() for t in first}.isdisjoint(t.data_ptr() for t in again)


def test_an_operator_of_another_device(built: AtbLayer, theirs: Theirs) -> None:
    built.execute(call(theirs, mask=None))
    operator = built._operators[""]
    operator.inputs[0] = replace(operator.inputs[0], device="npu")
    with pytest.raises(GraphError, match=r"LlamaLayer: hidden is on cpu, wanted npu"):
        built.execute(call(theirs, mask=None))


def test_tables_of_half_the_columns(built: AtbLayer, theirs: Theirs) -> None:
    half = [t[:, : SIZES.head_dim // 2] for t in theirs.tables]
    whole = built.execute(call(theirs))[0]
    assert torch.equal(whole, built.execute(call(theirs, cos_table=half[0], sin_table=half[1]))[0])


PAST = torch.ones(2, BATCH, SIZES.kv_heads, SIZES.head_dim)


@pytest.mark.parametrize(("changes", "message"), [
    ({"hidden": torch.ones(3, SIZES.hidden)}, r"hidden is torch\.float32 \[3, 64\]"),
    ({"hidden": torch.ones(BATCH, 3, SIZES.hidden).bfloat16()}, r"hidden is torch\.bfloat16"),
    ({"hidden": torch.ones(BATCH, 3, 32)}, r"hidden is .* \[2, 3, 32\], wanted .*, 64\]"),
    ({"hidden": torch.ones(3, 3, SIZES.hidden), "position_ids": torch.ones(3, 3).int()},
     r"past_key .* wanted \[seq, batch, kv_heads, dim\] = \[seq, 3, 2, 16\](?s:.)*begins a new"),
    ({"position_ids": torch.zeros(BATCH, 3)}, r"position_ids is torch\.float32"),
    ({"position_ids": torch.zeros(BATCH, 4).int()}, r"wanted whole numbers \[batch, tokens\]"),
    ({"position_ids": torch.full((BATCH, 3), MOST)}, "position_ids holds 64, wanted 0 to 63"),
    ({"position_ids": torch.full((BATCH, 3), -1)}, "position_ids holds -1"),
    ({"cos_table": torch.ones(MOST, 12)}, r"cos_table is torch\.float32 \[64, 12\]"),
    ({"sin_table": torch.arange(32.0).reshape(2, 16)}, "columns from 8 on differ"),
    ({"mask": torch.ones(3, 4).bool()}, r"mask is \[3, 4\], wanted \[3, 5\] or \[2, 1, 3, 5\]"),
    ({"mask": torch.ones(BATCH, 3, 5).bool()}, r"mask is \[2, 3, 5\]"),
    ({"mask": torch.ones(3, 5).double()}, r"mask is torch\.float64, wanted torch\.bool"),
    ({"mask": [1]}, "mask is a list"),
    ({"past_key": None}, "past_key is a NoneType"),
    ({"past_key": torch.ones(0, device="meta")}, "past_key is on meta"),
    ({"past_key": PAST.clone().requires_grad_()}, "past_key requires grad"),
    ({"past_key": PAST.double()}, r"past_key is torch\.float64"),
    ({"past_key": PAST.permute(1, 2, 0, 3)[:, :, :1]},
     r"hint: past_key\.permute\(2, 0, 1, 3\)"),
    ({"past_value": PAST[:1].permute(1, 0, 2, 3)}, r"hint: past_value\.permute\(1, 0, 2, 3\)"),
    ({"past_value": PAST[:1]}, "past_key has 2 tokens and past_value has 1"),
    ({"weights": []}, "7 tensors given, 16 wanted"),
    ({"weights": [torch.ones(2)] * 9}, r"weight attn_norm is \[2\], wanted \[64\]"),
])
def test_what_is_refused(built: AtbLayer, theirs: Theirs, changes: dict[str, Any],
                         message: str) -> None:
    with pytest.raises(GraphError, match=message):
        built.execute(call(theirs, **changes))
    assert built.copied_bytes == 0


@dataclass(frozen=True)
class Small:
    heads: int = 2
    dim: int = 8
    rotary: int = 4


class Other(Layer):
    """Takes no angles."""

    signature: ClassVar[str] = "x[batch, tokens, heads, dim] -> y[batch, tokens, heads, dim]"

    def __init__(self, config: Small = Small()) -> None:
        self.config = config
        self.kv = KVCache(config.heads, config.dim)

    def forward(self, x: Value) -> Value:
        return x


class Turned(Other):
    """Takes what a decoder layer takes."""

    signature = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32,"
                 " cos[batch, tokens, rotary]:f32, sin[batch, tokens, rotary]:f32"
                 " -> y[batch, tokens, heads, dim]")

    def __init__(self, config: Small = Small(), layout: str = "") -> None:
        self.config = config
        self.kv = KVCache(config.heads, config.dim, layout=layout)

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        kv = self.kv.append(x, x, positions)
        y: Value = attention(x, kv.k, kv.v, positions)
        return y


class Unsized(Turned):
    signature = Turned.signature.replace("rotary", "angles")


class Doubled(Turned):
    def __init__(self, config: Small = Small()) -> None:
        super().__init__(config)
        self.more = KVCache(config.heads, config.dim)


@pytest.mark.parametrize(("layer", "message"), [
    (Other(), "Other takes x and returns 1 values, wanted x, positions, cos, sin"),
    (Unsized(), "the last axis of cos is angles, wanted a number"),
    (Doubled(), "Doubled has 2 KV caches, wanted 1"),
    (Turned(layout="bnsd"), "Turned keeps its cache as bnsd, wanted sbnd"),
    (Turned(layout="sbnd:shift"), "Turned keeps its cache as sbnd:shift, wanted sbnd"),
])
def test_layers_that_are_refused(options: BuildOptions, layer: Layer, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        AtbLayer(layer, options)


@pytest.mark.parametrize(("asked", "message"), [
    ({"policy": "paged"}, "kv_layout:policy=paged is not for an AtbLayer of cpu, wanted "
                          "policy=contiguous"),
    ({"order": "bnsd"}, "kv_layout:order=bnsd .* wanted order=sbnd"),
    ({"order": "sbnd", "storage": "int8"}, "kv_layout:storage=int8 .* wanted no storage"),
])
def test_layouts_that_are_refused(options: BuildOptions, asked: dict[str, str],
                                  message: str) -> None:
    with pytest.raises(GraphError, match=message):
        AtbLayer(llama.LlamaLayer(SIZES), replace(options, passes={"kv_layout": asked}))


def test_a_layout_as_it_is_anyway(options: BuildOptions) -> None:
    asked = {"kv_layout": {"order": "sbnd", "policy": "contiguous"}}
    layer = AtbLayer(llama.LlamaLayer(SIZES), replace(options, passes=asked))
    assert layer.weights == AtbLayer(llama.LlamaLayer(SIZES), options).weights
