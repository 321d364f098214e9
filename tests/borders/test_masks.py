"""Layers that take a mask: in the reference and built, equal to torch's attention; and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from bundle import bundle
from torch import Tensor

from graphdsl.borders.masks import with_mask
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, Layout, Value
from graphdsl.layer import KVCache, Layer, trace
from graphdsl.models import llama
from graphdsl.ops import attention
from graphdsl.passes.verify import problem_of
from graphdsl.printer import text
from graphdsl.reference import run
from graphdsl.runtime.operator import Operator

SMALL = llama.Config(vocab=32, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=24)
BATCH, TOKENS, SLOTS = 2, 3, 8


@dataclass(frozen=True)
class Heads:
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8


class Attend(Layer):
    """Attention alone, over what was appended."""

    signature: ClassVar[str] = ("q[batch, tokens, heads, dim], k[batch, tokens, kv_heads, dim],"
                                " v[batch, tokens, kv_heads, dim], positions[batch, tokens]:i32"
                                " -> y[batch, tokens, heads, dim]")

    def __init__(self, config: Heads = Heads()) -> None:
        self.config = config
        self.kv = KVCache(config.kv_heads, config.dim)

    def forward(self, q: Value, k: Value, v: Value, positions: Value) -> Value:
        kv = self.kv.append(k, v, positions)
        y: Value = attention(q, kv.k, kv.v, positions)
        return y


class Outer(Attend):
    """The same in a Layer of its own."""

    def __init__(self, config: Heads = Heads()) -> None:
        self.config = config
        self.inner = Attend(config)

    def forward(self, q: Value, k: Value, v: Value, positions: Value) -> Value:
        y: Value = self.inner(q, k, v, positions)
        return y


@dataclass(frozen=True)
class Case:
    """A step of TOKENS tokens after as many others as `past`, and what torch makes of it."""

    inputs: dict[str, Tensor]
    state: dict[str, Tensor]
    past: int

    @staticmethod
    def drawn(past: int, prefix: str = "") -> Case:
        torch.manual_seed(past)
        heads = Heads()
        q = torch.randn(BATCH, TOKENS, heads.heads, heads.dim)
        k, v = (torch.randn(BATCH, TOKENS, heads.kv_heads, heads.dim) for _ in "kv")
        positions = torch.arange(past, past + TOKENS).int().expand(BATCH, TOKENS).contiguous()
        caches = {f"{prefix}kv.{n}": torch.randn(BATCH, SLOTS, heads.kv_heads, heads.dim)
                  for n in "kv"}
        return Case({"q": q, "k": k, "v": v, "positions": positions}, caches, past)

    def expected(self, seen: Tensor, bias: Tensor | None = None) -> Tensor:
        """torch's own, for keys [0, past + TOKENS) that are seen [batch, 1, tokens, keys]; a row
        that sees nothing is 0."""
        keys = self.past + TOKENS
        caches = []
        for name, new in zip(self.state, (self.inputs["k"], self.inputs["v"]), strict=True):
            whole = torch.cat([self.state[name][:, : self.past], new], 1).transpose(1, 2)
            caches.append(whole.repeat_interleave(2, 1))
        causal = torch.arange(keys) <= torch.arange(self.past, keys)[:, None]
        mask = torch.zeros(BATCH, 1, TOKENS, keys).masked_fill(~(seen & causal), -torch.inf)
        mask = mask if bias is None else mask + bias
        y = torch.nn.functional.scaled_dot_product_attention(
            self.inputs["q"].transpose(1, 2), *caches, attn_mask=mask)
        blank = ~(seen & causal).any(-1, keepdim=True)
        return y.masked_fill(blank, 0.0).transpose(1, 2)


def padded(keys: int) -> Tensor:
    """The first sequence has two tokens of padding on the left: [batch, 1, tokens, keys]."""
    seen = torch.ones(BATCH, 1, TOKENS, keys, dtype=torch.bool)
    seen[0, :, :, :2] = False
    return seen


def widened(mask: Tensor, keys: int) -> Tensor:
    """`mask` with more keys, about which it says anything, or fewer."""
    surplus = torch.full((*mask.shape[:-1], max(keys - mask.shape[-1], 0)), 1, dtype=mask.dtype)
    return torch.cat([mask, surplus], -1)[..., :keys].contiguous()


@pytest.mark.parametrize("width", [TOKENS + 2, SLOTS, SLOTS + 3])
@pytest.mark.parametrize("past", [0, 2])
def test_a_bool_mask_in_the_reference(past: int, width: int) -> None:
    graph, case = with_mask(trace(Attend()), "bool"), Case.drawn(past)
    seen = padded(past + TOKENS)
    found = run(graph, case.inputs | {"mask": widened(seen, width)}, {}, case.state)[0]
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found, case.expected(seen))


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_an_additive_mask_in_the_reference(kind: str) -> None:
    case = Case.drawn(2)
    graph = with_mask(trace(Attend(), "bf16" if kind == "bf16" else "f32"), kind)
    assert graph.inputs[-1].type.dtype == kind
    bias = torch.randn(BATCH, 1, TOKENS, TOKENS + 2).to(torch.bfloat16)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    floats = {n: t.to(dtype) for n, t in case.inputs.items() if n != "positions"}
    state = {n: t.to(dtype) for n, t in case.state.items()}
    found = run(graph, {**case.inputs, **floats, "mask": bias.to(dtype)}, {}, state)[0]
    rounded = Case({**case.inputs, **{n: t.float() for n, t in floats.items()}},
                   {n: t.float() for n, t in state.items()}, 2)
    expected = rounded.expected(torch.ones(BATCH, 1, TOKENS, TOKENS + 2).bool(), bias.float())
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=1e-2)


def test_keys_beyond_a_mask_are_unseen() -> None:
    graph, case = with_mask(trace(Attend()), "bool"), Case.drawn(4)
    seen = torch.ones(BATCH, 1, TOKENS, 7, dtype=torch.bool)
    seen[..., 3:] = False
    found = run(graph, case.inputs | {"mask": seen[..., :3].contiguous()}, {}, case.state)[0]
    torch.testing.assert_close(found, case.expected(seen))


def test_an_additive_mask_hides_as_a_bool_one_does() -> None:
    case, seen = Case.drawn(0), padded(TOKENS)
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    found = [run(with_mask(trace(Attend()), kind), case.inputs | {"mask": mask}, {}, case.state)[0]
             for kind, mask in (("bool", seen), ("f32", bias))]
    assert bool(torch.isfinite(found[1]).all())
    sees = seen.any(-1)[:, 0, :] & (torch.arange(TOKENS) >= torch.tensor([[2], [0]]))
    torch.testing.assert_close(found[0][sees], found[1][sees])


def test_the_graph_of_a_layer_stays_as_it_was() -> None:
    graph = trace(llama.LlamaLayer(SMALL))
    before = text(graph)
    masked = with_mask(graph, "bool")
    assert text(graph) == before
    assert [v.name for v in masked.inputs] == ["x", "positions", "cos", "sin", "mask"]
    assert str(masked.inputs[-1].type) == "bool[batch, 1, tokens, keys]"
    node = next(n for n in masked.nodes if n.op is attention)
    assert node.attr["given"] == ("positions", "mask")
    assert node.loc == next(n for n in graph.nodes if n.op is attention).loc
    assert not problem_of(masked)


def test_layers_in_a_layer_are_opened() -> None:
    case = Case.drawn(2, "inner.")
    graph = with_mask(trace(Outer()), "bool")
    assert {n.name for n in graph.nodes} == {"kv_append", "attention"}
    seen = padded(TOKENS + 2)
    found = run(graph, case.inputs | {"mask": seen}, {}, case.state)[0]
    torch.testing.assert_close(found, case.expected(seen))


def test_every_layer_of_a_model_takes_the_mask() -> None:
    graph = with_mask(trace(llama.Llama(SMALL)), "bool")
    masked = [n for n in graph.nodes if n.op is attention]
    assert len(masked) == 2
    assert {n.inputs[4] for n in masked} == {graph.inputs[-1]}
    assert [v.name for v in graph.inputs] == ["ids", "positions", "rows", "mask"]


class Plain(Attend):
    """Without positions: token i stands at i."""

    def forward(self, q: Value, k: Value, v: Value, positions: Value) -> Value:
        y: Value = attention(q, k, v)
        return y


class Twice(Attend):
    """Attention that has a mask."""

    signature = Attend.signature.replace(" -> ", ", bias[tokens, slots]:f32 -> ")

    def forward(self, q: Value, k: Value, v: Value, positions: Value, bias: Value) -> Value:
        kv = self.kv.append(k, v, positions)
        y: Value = attention(q, kv.k, kv.v, positions, bias)
        return y


class Named(Attend):
    """An input called mask, which says something else."""

    signature = Attend.signature.replace(" -> ", ", mask[tokens]:f32 -> ")

    def forward(self, q: Value, k: Value, v: Value, positions: Value, mask: Value) -> Value:
        return Attend.forward(self, q, k, v, positions)


class Keyed(Named):
    signature = Attend.signature.replace(" -> ", ", other[keys]:f32 -> ")


class Both(Attend):
    """Attention of two numbers of tokens."""

    signature = Attend.signature.replace(" -> ", ", more[batch, others, heads, dim],"
                                         " places[batch, others]:i32 -> ")

    def forward(self, q: Value, k: Value, v: Value, positions: Value, more: Value,
                places: Value) -> Value:
        kv = self.kv.append(k, v, positions)
        rest = attention(more, kv.k, kv.v, places)
        y: Value = attention(q, kv.k, kv.v, positions) + rest[:, :1]
        return y


@pytest.mark.parametrize(("layer", "kind", "message"), [
    (Attend(), "bf16", "no mask of 'bf16'"),
    (Plain(), "bool", "no causal attention with positions"),
    (Twice(), "bool", r"test_masks\.py:\d+: Twice: attention has a mask already"),
    (Named(), "bool", "called mask already"),
    (Keyed(), "bool", "called keys already"),
    (Both(), "bool", "one mask does not fit both"),
])
def test_refusals(layer: Layer, kind: str, message: str) -> None:
    graph: Graph = trace(layer)
    with pytest.raises(GraphError, match=message):
        with_mask(graph, kind)


def test_the_keys_are_a_dim_of_their_own() -> None:
    mask = with_mask(trace(Attend()), "f32").inputs[-1]
    assert mask.shape[-1] == Dim("keys")


def test_masks_on_the_cpu(options: BuildOptions) -> None:
    graphs = [with_mask(trace(Attend()), kind) for kind in ("bool", "f32")]
    whole = bundle(graphs)
    operator = Operator(build_graph(whole, options).path)
    for past, width in ((0, TOKENS), (2, TOKENS + 2), (2, SLOTS), (2, SLOTS + 3)):
        case = Case.drawn(past)
        seen = padded(past + TOKENS)
        bias = torch.randn(seen.shape)
        masks = [widened(seen, width), widened(bias.masked_fill(~seen, -torch.inf), width)]
        inputs = [t for mask in masks for t in (*case.inputs.values(), mask)]
        order = Layout(operator.manifest["state"][0]["layout"]["order"]).permutation
        state = {f"g{i}.{name}": t.permute(order).contiguous()
                 for i in range(2) for name, t in case.state.items()}
        found = operator(*inputs, state=state)
        expected = [case.expected(seen), case.expected(seen, bias)]
        for ours, other in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, other)
