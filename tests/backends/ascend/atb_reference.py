"""A Program in torch: what every ATB operation computes, in f32 and rounded once, with the shapes
that the program declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor as Array

from graphdsl.backends.ascend import atb
from graphdsl.expr import Poly
from graphdsl.ir import size_value
from graphdsl.lazy import torch_dtype

F = torch.nn.functional
Shape = tuple[int, ...]


@dataclass
class Step:
    """One step of a program: `tensors` by their names in the program, `dims` of the manifest."""

    program: atb.Program
    tensors: dict[str, Array]
    dims: dict[str, int]

    def __post_init__(self) -> None:
        self.dims = dict(self.dims)
        for dim, poly in self.program.sizes:
            self.dims[dim.name] = _number(poly, self.dims)

    def shape(self, sizes: tuple[Any, ...]) -> Shape:
        return tuple(size_value(size, self.dims) for size in sizes)

    def run(self, phase: str) -> dict[str, Array]:
        """All tensors after the step; caches are changed where they lie."""
        for prepared in self.program.prepared:
            made = _prepared(self, prepared)
            if made is not None:
                assert tuple(made.shape) == self.shape(prepared.tensor.shape), prepared
                self.tensors[prepared.tensor.name] = made
        (chosen,) = (p for p in self.program.phases if p.name == phase)
        for run in chosen.runs:
            self.graph(run)
        return self.tensors

    def graph(self, run: atb.Run) -> None:
        graph = run.graph
        bound = dict(zip((*graph.inputs, *graph.outputs), run.bound, strict=True))
        env = {t: self.tensors[bound[t]] for t in graph.inputs}
        for tensor, array in env.items():
            assert tuple(array.shape) == self.shape(tensor.shape), (graph.name, tensor)
            assert array.dtype == torch_dtype(tensor.dtype), (graph.name, tensor)
        for node in graph.nodes:
            seen = [env[t].reshape(self.shape(node.seen(i))) for i, t in enumerate(node.inputs)]
            outputs = compute(node, seen)
            for tensor, array in zip(node.outputs, outputs, strict=True):
                assert tuple(array.shape) == self.shape(tensor.shape), (graph.name, node, array)
                env[tensor] = array.to(torch_dtype(tensor.dtype))
        for tensor in graph.outputs:
            self.tensors[bound[tensor]] = env[tensor]


def _number(poly: Poly, dims: Mapping[str, int]) -> int:
    return sum(k * math.prod(dims[name] for name in names) for names, k in poly.items)


def _prepared(step: Step, prepared: atb.Prepared) -> Array | None:
    """What the runner computes on the host; None where the phase has no such input."""
    of = [step.tensors[name] for name in prepared.of]
    dims, dtype = step.dims, torch_dtype(prepared.tensor.dtype)
    sequences, tokens = dims["sequences"], dims["tokens"]
    owner = torch.arange(dims["rows"]) // tokens
    if prepared.kind == "lengths":
        return torch.full((sequences,), tokens, dtype=torch.int32)
    if prepared.kind == "layer":
        return torch.zeros(1, dtype=torch.int32)
    if prepared.kind in ("ids", "angles"):
        assert int(of[0].max()) < prepared.limit
        return of[0].reshape(-1).clamp_min(0)
    if prepared.kind == "picked":
        rows = of[0].reshape(sequences, -1)
        return (rows + torch.arange(sequences).unsqueeze(1) * tokens).reshape(-1).int()
    if prepared.kind == "triangle":
        mask = torch.triu(torch.ones(128, 128), 1) * (1.0 if dtype == torch.bfloat16 else -1e4)
        nz = mask.reshape(1, 128, 8, 16).permute(0, 2, 1, 3)
        return (nz if prepared.tensor.format == "nz" else mask).to(dtype)
    if prepared.kind == "mask":
        return _mask(of[0].reshape(sequences, tokens), dims["slots"], prepared.window).to(dtype)
    if prepared.kind == "offsets":
        return of[0].reshape(sequences, tokens)[:, -1] + 1
    if prepared.kind == "contexts":
        return (of[0].reshape(-1) + 1).clamp_min(1)
    if prepared.kind == "blocks":
        return of[0].clamp_min(0)[owner]
    assert prepared.kind == "slots"
    at, table = of[0].reshape(-1), of[1]
    block = table[owner, (at // prepared.block).clamp_min(0).long()]
    return torch.where(at < 0, -1, block * prepared.block + at % prepared.block).int()


def _mask(positions: Array, slots: int, window: int) -> Array:
    """ATB's: 1 where a key is unseen for bf16, which its kernel multiplies; here f16 has it too."""
    key = torch.arange(slots)
    unseen = key > positions.unsqueeze(-1)
    if window:
        unseen |= key <= positions.unsqueeze(-1) - window
    return unseen.float() * -1e4


def compute(node: atb.Node, x: list[Array]) -> list[Array]:
    """The outputs of one operation."""
    fields: dict[str, Any] = dict(node.fields)
    wide = [a.float() if a.is_floating_point() else a for a in x]
    if node.op == "Linear":
        y = wide[0] @ _rows_of(wide[1]).T
        return [y + wide[2] if fields["hasBias"] else y]
    if node.op == "RmsNorm":
        return _rms_norm(fields, wide, x[0].dtype)
    if node.op == "LayerNorm":
        return [F.layer_norm(wide[0], wide[0].shape[1:], wide[1], wide[2],
                             fields["normParam.epsilon"])]
    if node.op == "Rope":
        return [_rope(a, wide[2], wide[3], fields["rotaryCoeff"]) for a in wide[:2]]
    if node.op == "Split":
        sizes = fields.get("splitSizes") or x[0].shape[1] // fields["splitNum"]
        return list(torch.split(x[0], sizes, fields["splitDim"]))
    if node.op == "Concat":
        return [torch.cat(x, fields["concatDim"])]
    if node.op == "Transpose":
        return [x[0].permute(fields["perm"])]
    if node.op == "Softmax":
        return [wide[0].softmax(fields["axes"][0])]
    if node.op == "Gather":
        return [x[0][x[1].long()]]
    if node.op == "Elewise":
        return [_elewise(fields, wide)]
    if node.op == "Activation":
        return [_activation(fields["activationType"].name, wide[0])]
    return _attention(node, fields, x)


def _rows_of(w: Array) -> Array:
    """A weight [n, k], in NZ [1, k / 16, n, 16]."""
    return w if w.dim() == 2 else w[0].transpose(0, 1).reshape(w.shape[2], -1)


def in_tiles(w: Array) -> Array:
    """A weight [n, k] in NZ."""
    return w.reshape(1, w.shape[0], -1, 16).transpose(1, 2).contiguous()


def _rms_norm(fields: dict[str, Any], x: list[Array], dtype: torch.dtype) -> list[Array]:
    if fields["layerType"].name == "RMS_NORM_NORM":
        return [F.rms_norm(x[0], x[1].shape, x[1], fields["normParam.epsilon"])]
    total = (x[0] + x[1]).to(dtype).float()
    return [F.rms_norm(total, x[2].shape, x[2], fields["preNormParam.epsilon"]), total]


def _rope(x: Array, cos: Array, sin: Array, coefficient: int) -> Array:
    width = cos.shape[1]
    heads = x.reshape(x.shape[0], -1, width)
    if coefficient == 2:
        first, second = heads.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        assert coefficient == width
        turned = torch.stack([-heads[..., 1::2], heads[..., ::2]], -1).reshape(heads.shape)
    return (heads * cos.unsqueeze(1) + turned * sin.unsqueeze(1)).reshape(x.shape)


def _elewise(fields: dict[str, Any], x: list[Array]) -> Array:
    kind = fields["elewiseType"].name.removeprefix("ELEWISE_")
    if kind == "MULS":
        return torch.mul(x[0], fields["mulsParam.varAttr"])
    computed: dict[str, Callable[..., Array]] = {
        "ADD": torch.add, "MUL": torch.mul, "SUB": torch.sub, "REALDIV": torch.div,
        "COS": torch.cos, "SIN": torch.sin, "TANH": torch.tanh, "NEG": torch.neg,
        "CAST": torch.clone}
    return computed[kind](*x)


def _activation(kind: str, x: Array) -> Array:
    if kind == "ACTIVATION_SWIGLU_FORWARD":
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up
    if kind == "ACTIVATION_GELU":
        return F.gelu(x, approximate="tanh")
    return {"ACTIVATION_SWISH": F.silu, "ACTIVATION_RELU": F.relu}[kind](x)


def _attention(node: atb.Node, fields: dict[str, Any], x: list[Array]) -> list[Array]:
    nz = any(t.format == "nz" for t in node.inputs)
    if node.op == "ReshapeAndCache":
        return _append(x, nz)
    heads, groups = fields["headNum"], fields["kvHeadNum"]
    if node.op == "PagedAttention":
        return [torch.stack([_paged(row, x, i, fields, nz) for i, row in enumerate(x[0])])]
    scale = fields["qkScale"]
    if fields["calcType"].name == "PA_ENCODER":
        parts = [a.float().split_with_sizes(x[-1].tolist()) for a in x[:3]]
        made = []
        for q, k, v in zip(*parts, strict=True):
            mask = torch.triu(torch.full((len(q), len(q)), -1e30), 1)
            made.append(_attend(_heads(q, heads), _heads(k, groups), _heads(v, groups), scale,
                                mask))
        return [torch.cat(made)]
    return [_contiguous(x, fields, nz)]


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(x.shape[0], heads, -1)


def _attend(q: Array, k: Array, v: Array, scale: float, mask: Array) -> Array:
    group = q.shape[1] // k.shape[1]
    k, v = (a.float().repeat_interleave(group, 1) for a in (k, v))
    scores = torch.einsum("thd,shd->hts", q.float(), k) * scale + mask
    return torch.einsum("hts,she->the", scores.softmax(-1), v).reshape(q.shape[0], -1)


def _by_rows(cache: Array, nz: bool) -> Array:
    """A paged cache as [slots, columns]."""
    if nz:
        cache = cache.permute(0, 2, 1, 3)
    return cache.reshape(cache.shape[0] * cache.shape[1], -1)


def _append(x: list[Array], nz: bool) -> list[Array]:
    for new, cache in zip(x[:2], x[2:4], strict=True):
        rows = new.reshape(new.shape[0], -1)
        block = cache.shape[2 if nz else 1]
        for row, slot in zip(rows, x[4].tolist(), strict=True):
            if slot >= 0 and nz:
                cache[slot // block, :, slot % block] = row.reshape(-1, 16)
            elif slot >= 0:
                cache[slot // block, slot % block] = row.reshape(cache.shape[2:])
    return x[2:4]


def _paged(q: Array, x: list[Array], row: int, fields: dict[str, Any], nz: bool) -> Array:
    block = x[1].shape[2 if nz else 1]
    keys = torch.arange(int(x[4][row]))
    slots = x[3][row][keys // block].long() * block + keys % block
    k, v = (_heads(_by_rows(c, nz)[slots], fields["kvHeadNum"]) for c in x[1:3])
    y = _attend(q.unsqueeze(0), k, v, fields["qkScale"], torch.zeros(len(keys)))
    return y.reshape(q.shape)


def _contiguous(x: list[Array], fields: dict[str, Any], nz: bool) -> Array:
    mask, offsets, lengths, layer = x[5:]
    made, start = [], 0
    for i, (end, count) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
        rows = slice(start, start + count)
        start += count
        kept = []
        for new, cache in zip(x[1:3], x[3:5], strict=True):
            own = cache[int(layer[0]), i]
            if nz:
                own[:, end - count:end] = new[rows].reshape(count, -1, 16).permute(1, 0, 2)
                own = own.permute(1, 0, 2).reshape(own.shape[1], -1)
            else:
                own[end - count:end] = new[rows]
            kept.append(_heads(own[:end], fields["kvHeadNum"]))
        bias = mask[i, :count, :end].float() * (3e34 if mask.dtype == torch.bfloat16 else 1)
        k, v = kept
        made.append(_attend(_heads(x[0][rows], fields["headNum"]), k, v, fields["qkScale"], bias))
    return torch.cat(made)
