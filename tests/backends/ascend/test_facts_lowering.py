"""What is lowered keeps to ATB's layouts of attention, orders of inputs and traps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
from lowercase import CHATGLM, GLM, GPT2, LLAMA, QWEN, graph, program

from graphdsl.backends.ascend.atb import (
    BLOCKS,
    QUERIES,
    ROWS,
    SEQUENCES,
    SLOTS,
    TOKENS,
    Graph,
    Node,
    Program,
)
from graphdsl.layer import Layer
from graphdsl.models import chatglm, glm, gpt2, llama, qwen

LAYERS: dict[str, Callable[[], Layer]] = {
    "llama": lambda: llama.LlamaLayer(LLAMA), "qwen2": lambda: qwen.Qwen2Layer(QWEN),
    "qwen3": lambda: qwen.Qwen3Layer(QWEN), "glm4": lambda: glm.GlmLayer(GLM),
    "chatglm2": lambda: chatglm.ChatGLM2Layer(CHATGLM),
    "gpt2": lambda: gpt2.GPT2Layer(GPT2)}
CASES = [pytest.param(*case, id="-".join(case))
         for case in product(LAYERS, ("910b", "310p"))]
every = pytest.mark.parametrize(("name", "soc"), CASES)


@cache
def lowered(name: str, soc: str, policy: str = "paged") -> Program:
    return program(LAYERS[name](), soc=soc, policy=policy)


def only(made: Graph, op: str) -> Node:
    (found,) = (node for node in made.nodes if node.op == op)
    return found


def fields(node: Node) -> dict[str, Any]:
    return {path: getattr(value, "name", value) for path, value in node.fields}


def all_nodes() -> Iterator[Node]:
    for name, soc, policy in product(LAYERS, ("910b", "310p"), ("paged", "contiguous")):
        for phase in lowered(name, soc, policy).phases:
            for made in phase.graphs:
                yield from made.nodes


@every
def test_prefill_is_pa_encoder_on_the_new_keys(name: str, soc: str) -> None:
    """q, k and v of one rank, the mask at 3, lengths on the host at 4; no cache."""
    node = only(graph(lowered(name, soc), "prefill"), "SelfAttention")
    assert len(node.inputs) == 5
    assert {len(node.seen(i)) for i in range(3)} == {2}
    assert (fields(node)["calcType"], fields(node)["kvcacheCfg"]) == ("PA_ENCODER",
                                                                      "K_CACHE_V_CACHE")
    assert node.inputs[4].host
    assert node.inputs[4].shape == (SEQUENCES,)


@every
def test_prefill_writes_the_cache_before_it_attends(name: str, soc: str) -> None:
    ops = [node.op for node in graph(lowered(name, soc), "prefill").nodes]
    assert ops.index("ReshapeAndCache") < ops.index("SelfAttention")


@every
def test_prefill_has_the_compressed_mask_of_its_chip(name: str, soc: str) -> None:
    node = only(graph(lowered(name, soc), "prefill"), "SelfAttention")
    given = fields(node)
    assert (given["maskType"], given["isTriuMask"]) == ("MASK_TYPE_NORM_COMPRESS", 1)
    mask = node.inputs[3]
    wanted = ((128, 128), "nd") if soc == "910b" else ((1, 8, 128, 16), "nz")
    assert (mask.shape, mask.format) == wanted


@every
def test_decode_is_paged_attention_without_a_mask(name: str, soc: str) -> None:
    """A query of 3 axes for every row, with pages and a context of its own on the host."""
    node = only(graph(lowered(name, soc), "decode"), "PagedAttention")
    assert len(node.inputs) == 5
    assert fields(node).get("maskType", "UNDEFINED") == "UNDEFINED"
    assert len(node.seen(0)) == 3
    assert node.inputs[3].shape[0] == QUERIES
    assert (node.inputs[4].shape, node.inputs[4].host) == ((QUERIES,), True)


@every
def test_paged_caches_lie_as_the_chip_wants_them(name: str, soc: str) -> None:
    for phase, op, first in (("prefill", "ReshapeAndCache", 2), ("decode", "PagedAttention", 1)):
        node = only(graph(lowered(name, soc), phase), op)
        for cache_in in node.inputs[first:first + 2]:
            kv = cache_in.shape
            assert kv[0] == BLOCKS
            if soc == "910b":
                assert (cache_in.format, len(kv), kv[1]) == ("nd", 4, 128)
            else:
                assert (cache_in.format, len(kv), kv[2:]) == ("nz", 4, (128, 16))


@every
def test_caches_are_written_in_place(name: str, soc: str) -> None:
    for phase in ("prefill", "decode"):
        node = only(graph(lowered(name, soc), phase), "ReshapeAndCache")
        assert node.outputs == node.inputs[2:4]
        assert len(node.seen(0)) == len(node.seen(1)) == 3
        assert (node.inputs[4].shape, node.inputs[4].dtype) == ((ROWS,), "i32")


@every
def test_contiguous_attention_writes_its_cache(name: str, soc: str) -> None:
    """The mask at 5, tokenOffset and seqLen on the host at 6 and 7, layerId at 8."""
    made = graph(lowered(name, soc, "contiguous"), "contiguous")
    assert not any(node.op in ("ReshapeAndCache", "KvCache") for node in made.nodes)
    node = only(made, "SelfAttention")
    assert len(node.inputs) == 9
    assert {len(node.seen(i)) for i in range(3)} == {2}
    given = fields(node)
    assert (given["calcType"], given["kvcacheCfg"]) == ("UNDEFINED", "K_CACHE_V_CACHE")
    assert [tensor.host for tensor in node.inputs[6:]] == [True, True, False]
    assert [tensor.shape for tensor in node.inputs[6:]] == [(SEQUENCES,), (SEQUENCES,), (1,)]


@every
def test_a_mask_of_contiguous_caches_has_a_row_for_every_new_token(name: str, soc: str) -> None:
    """Not for every slot: rows are counted from 0. isTriuMask would hide the past."""
    node = only(graph(lowered(name, soc, "contiguous"), "contiguous"), "SelfAttention")
    given = fields(node)
    assert (given["maskType"], given.get("isTriuMask", 0)) == ("MASK_TYPE_NORM", 0)
    if node.inputs[5].format == "nd":
        assert node.inputs[5].shape == (SEQUENCES, TOKENS, SLOTS)


@every
def test_contiguous_caches_have_one_layer(name: str, soc: str) -> None:
    """[1, sequences, slots, columns], in tiles on a 310P, with layerId 0."""
    made = lowered(name, soc, "contiguous")
    node = only(graph(made, "contiguous"), "SelfAttention")
    for kept in node.inputs[3:5]:
        assert kept.shape[:2] == (1, SEQUENCES)
        assert (len(kept.shape), kept.format) == ((4, "nd") if soc == "910b" else (5, "nz"))
    kinds = {prepared.tensor.name: prepared.kind for prepared in made.prepared}
    assert "layer" in kinds.values()


@every
def test_token_offsets_contexts_and_slots_are_made_of_positions(name: str, soc: str) -> None:
    for policy, wanted in (("paged", {"lengths", "slots", "contexts", "blocks", "triangle"}),
                           ("contiguous", {"lengths", "offsets", "mask", "layer"})):
        prepared = lowered(name, soc, policy).prepared
        assert wanted <= {each.kind for each in prepared}
        for each in prepared:
            if each.kind in ("slots", "contexts", "offsets", "mask"):
                assert "positions" in each.of


@every
def test_heads_of_attention_are_those_of_the_layer(name: str, soc: str) -> None:
    heads = (4, 4) if name == "gpt2" else (4, 2)
    for policy, phases in (("paged", ("prefill", "decode")), ("contiguous", ("contiguous",))):
        for phase in phases:
            node = next(node for node in graph(lowered(name, soc, policy), phase).nodes
                        if node.op.endswith("Attention"))
            assert (fields(node)["headNum"], fields(node)["kvHeadNum"]) == heads


def test_rope_coefficients_are_2_or_the_width_of_cos() -> None:
    seen = set()
    for node in all_nodes():
        if node.op != "Rope":
            continue
        coefficient, width = fields(node)["rotaryCoeff"], node.seen(2)[1]
        assert coefficient in (2, width)
        assert node.seen(2) == node.seen(3)
        assert node.seen(2)[0] == node.seen(0)[0] == node.seen(1)[0] == ROWS
        assert [len(node.seen(i)) for i in range(4)] == [2, 2, 2, 2]
        seen.add("halves" if coefficient == 2 else "pairs")
    assert seen == {"halves", "pairs"}


def test_half_of_a_head_is_split_off_turned_and_joined() -> None:
    for name in ("glm4", "chatglm2"):
        ops = [node.op for node in graph(lowered(name, "910b"), "decode").nodes]
        at = ops.index("Rope")
        assert ops[at - 2:at + 3] == ["Split", "Split", "Rope", "Concat", "Concat"]


def test_q_and_k_are_turned_by_one_rope() -> None:
    for name, soc in product(LAYERS, ("910b", "310p")):
        wanted = 0 if name == "gpt2" else 1
        for phase in ("prefill", "decode"):
            made = graph(lowered(name, soc), phase)
            assert sum(node.op == "Rope" for node in made.nodes) == wanted


def test_a_310p_has_no_swiglu() -> None:
    for name in LAYERS:
        kinds = [fields(node).get("activationType")
                 for node in graph(lowered(name, "310p"), "decode").nodes]
        assert "ACTIVATION_SWIGLU_FORWARD" not in kinds


def test_flags_of_a_linear_are_always_set() -> None:
    for node in all_nodes():
        if node.op == "Linear":
            given = fields(node)
            assert given["hasBias"] == (len(node.inputs) == 3)
            assert {"transposeA", "transposeB", "outDataType"} <= given.keys()


def test_splits_are_in_2_or_3_and_concats_of_2() -> None:
    for node in all_nodes():
        if node.op == "Split":
            assert fields(node)["splitNum"] == len(node.outputs)
            assert len(node.outputs) in (2, 3)
        if node.op == "Concat":
            assert len(node.inputs) == 2


def test_norms_have_multiples_of_32_bytes() -> None:
    for node in all_nodes():
        if node.op == "RmsNorm":
            last = node.seen(0)[-1]
            assert isinstance(last, int)
            assert last % 16 == 0


def test_one_operation_of_atb_is_one_node() -> None:
    """ATB fuses nothing: a layer has as many nodes as its passes left."""
    assert len(graph(lowered("llama", "910b"), "decode").nodes) == 12
    assert len(graph(lowered("llama", "910b", "contiguous"), "contiguous").nodes) == 11
