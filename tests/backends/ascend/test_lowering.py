"""From lowered graphs to programs of ATB: which operations, how many, in which graphs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lowercase import GLM, GPT2, LLAMA, QWEN, SIZES, graph, ops, program

from graphdsl import KVCache, Layer, Param, Value
from graphdsl.backends.ascend.atb import ROWS
from graphdsl.backends.ascend.checks import check_program
from graphdsl.backends.ascend.lowering_text import graph_text, program_text
from graphdsl.models import chatglm, glm, gpt2, llama, qwen
from graphdsl.ops import (
    attention,
    cast,
    concat,
    embedding,
    linear,
    merge_heads,
    relu,
    rms_norm,
    rope,
    silu,
    split,
    split_heads,
    transpose,
)
from graphdsl.source import load_source

EXAMPLE = Path(__file__).parents[3] / "examples" / "llama_layer.py"
SMALL = {"hidden": "64", "heads": "4", "kv_heads": "2", "head_dim": "16", "ffn": "96"}
Golden = Callable[[str, str], None]
LLAMA_OPS = ["RMS_NORM_NORM", "Linear", "Split", "Rope", "ReshapeAndCache", "PagedAttention",
             "Linear", "RMS_NORM_PRENORM", "Linear", "SWIGLU_FORWARD", "Linear", "ADD"]


def test_a_llama_layer_is_twelve_operations(golden: Golden) -> None:
    made = program(llama.LlamaLayer(LLAMA))
    check_program(made, "910b")
    golden("ascend/llama_layer.txt", program_text(made))
    assert ops(graph(made, "decode")) == LLAMA_OPS
    prefill = ops(graph(made, "prefill"))
    assert prefill == [o if o != "PagedAttention" else "SelfAttention" for o in LLAMA_OPS]


def test_a_llama_layer_inside_a_model_is_eleven_operations(golden: Golden) -> None:
    made = program(llama.Llama(LLAMA))
    check_program(made, "910b")
    golden("ascend/llama_model.txt", program_text(made))
    assert ops(graph(made, "decode")) == [*LLAMA_OPS[1:-1], "RMS_NORM_PRENORM"]
    assert ops(graph(made, "decode", "begin")) == ["Gather", "RMS_NORM_NORM", "Gather", "Gather"]
    assert ops(graph(made, "decode", "end")) == ["Gather", "Linear", "CAST"]


def test_the_example_looks_its_angles_up_once_a_step() -> None:
    made = program(_example())
    assert ops(graph(made, "decode", "begin")) == ["Gather", "Gather"]
    assert ops(graph(made, "decode")) == LLAMA_OPS


def _example() -> Layer:
    layer = load_source(EXAMPLE, SMALL, "f16").layer
    assert isinstance(layer, Layer)
    return layer


def test_a_contiguous_cache_is_written_by_the_attention(golden: Golden) -> None:
    made = program(llama.LlamaLayer(LLAMA), policy="contiguous")
    check_program(made, "910b")
    golden("ascend/llama_contiguous.txt", graph_text(graph(made, "contiguous")))
    wanted = [o for o in LLAMA_OPS if o != "ReshapeAndCache"]
    assert ops(graph(made, "contiguous")) == ["SelfAttention" if o == "PagedAttention" else o
                                              for o in wanted]


def test_a_310p_has_caches_in_tiles_and_no_swiglu(golden: Golden) -> None:
    made = program(llama.LlamaLayer(LLAMA), soc="310p")
    check_program(made, "310p")
    golden("ascend/llama_310p.txt", graph_text(graph(made, "decode")))
    assert ops(graph(made, "decode"))[8:] == ["Linear", "Split", "SWISH", "MUL", "Linear", "ADD"]
    ports = {port.name: port for port in made.ports}
    assert ports["kv.k"].format == "nz"
    assert ports["kv.k"].shape[1:] == (2, 128, 16)


def test_qwen2_has_one_bias_for_the_merged_linear() -> None:
    made = graph(program(qwen.Qwen2Layer(QWEN)), "decode")
    assert ops(made) == LLAMA_OPS
    assert [dict(n.fields)["hasBias"] for n in made.nodes if n.op == "Linear"] == [
        True, False, False, False]


def test_qwen3_norms_every_head(golden: Golden) -> None:
    made = graph(program(qwen.Qwen3Layer(QWEN)), "decode")
    golden("ascend/qwen3_decode.txt", graph_text(made))
    assert ops(made) == [*LLAMA_OPS[:3], "RMS_NORM_NORM", "RMS_NORM_NORM", *LLAMA_OPS[3:]]
    heads = [n for n in made.nodes if n.op == "RmsNorm" and n.views[0]]
    assert [n.seen(0) for n in heads] == [(4 * ROWS, 16), (2 * ROWS, 16)]


@pytest.mark.parametrize("layer", [glm.GlmLayer(GLM),
                                   chatglm.ChatGLM2Layer(chatglm.Config(**SIZES, head_dim=32))])
def test_partial_rope_turns_a_part_of_every_head(layer: Layer) -> None:
    made = graph(program(layer), "decode")
    assert ops(made)[2:8] == ["Split", "Split", "Split", "Rope", "Concat", "Concat"]
    turned = next(n for n in made.nodes if n.op == "Rope")
    assert dict(turned.fields) == {"rotaryCoeff": 16}
    assert [turned.seen(i)[1] for i in range(4)] == [64, 32, 16, 16]


def test_glm(golden: Golden) -> None:
    golden("ascend/glm_decode.txt", graph_text(graph(program(glm.Glm(GLM)), "decode")))


def test_gpt2(golden: Golden) -> None:
    made = program(gpt2.GPT2(GPT2))
    golden("ascend/gpt2_decode.txt", graph_text(graph(made, "decode")))
    assert ops(graph(made, "decode", "begin")) == ["Gather", "Gather", "ADD"]
    limits = {p.tensor.name: p.limit for p in made.prepared if p.kind == "ids"}
    assert limits == {"ids_ids": 48, "ids_positions": 64}


def test_bf16_angles_are_cast_once_a_step() -> None:
    made = program(llama.Llama(LLAMA), dtype="bf16")
    check_program(made, "910b")
    assert ops(graph(made, "decode", "begin"))[2:] == ["Gather", "CAST", "Gather", "CAST"]
    rope_node = next(n for n in graph(made, "decode").nodes if n.op == "Rope")
    assert [t.dtype for t in rope_node.inputs] == ["bf16"] * 4 + ["i32"]


def test_layers_that_differ_are_a_graph_each() -> None:
    made = program(qwen.Qwen2(replace(QWEN, window=6, sliding=(1,))), policy="contiguous")
    check_program(made, "910b")
    assert [run.graph.name for run in made.phases[0].runs] == [
        "Qwen2_begin", "Qwen2_layers_0_contiguous", "Qwen2_layers_1_contiguous",
        "Qwen2_layers_2_contiguous", "Qwen2_end"]
    assert {p.tensor.name: p.window for p in made.prepared if p.kind == "mask"} == {
        "mask": 0, "mask_w6": 6}


def test_graphs_before_and_after_the_layers_are_those_of_both_phases() -> None:
    prefill, decode = program(llama.Llama(LLAMA)).phases
    assert (prefill.runs[0], prefill.runs[-1]) == (decode.runs[0], decode.runs[-1])


def test_what_a_repeat_carries_is_never_read_where_it_is_written() -> None:
    for run in program(llama.Llama(LLAMA)).phases[1].runs:
        inputs, outputs = run.bound[:len(run.graph.inputs)], run.bound[len(run.graph.inputs):]
        assert not set(inputs) & set(outputs)


def test_programs_are_the_same_every_time() -> None:
    assert program_text(program(glm.Glm(GLM))) == program_text(program(glm.Glm(GLM)))


def test_every_node_has_the_users_line() -> None:
    made = program(_example())
    nodes = [n for phase in made.phases for g in phase.graphs for n in g.nodes]
    assert {Path(n.loc.file).name for n in nodes if n.loc} == {"llama_layer.py"}
    assert all(n.loc for n in nodes)


class Named(Layer):
    """Inputs and params that are called as prepared and kept tensors would be."""

    signature = ("slots[batch, tokens, hidden], lengths[batch, tokens]:i32,"
                 " begin_cos[batch, tokens, rotary]:f32, begin_sin[batch, tokens, rotary]:f32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: llama.Config = LLAMA) -> None:
        self.config = config
        self.begin_begin_cos_wide = Param(64, 64)
        self.kv = KVCache(4, 16)

    def forward(self, slots: Value, lengths: Value, begin_cos: Value, begin_sin: Value) -> Value:
        x = split_heads(linear(slots, self.begin_begin_cos_wide), 4)
        q = rope(x, begin_cos, begin_sin)
        kv = self.kv.append(rope(x * 0.5, begin_cos, begin_sin), x, lengths)
        y: Value = merge_heads(attention(q, kv.k, kv.v, lengths))
        return y


def test_names_of_prepared_and_kept_tensors_are_not_those_of_ports() -> None:
    made = program(Named())
    check_program(made, "910b")
    assert {"lengths_2", "slots_2"} <= {p.tensor.name for p in made.prepared}


class Mixed(Layer):
    """Operations that a decoder layer has not."""

    signature = "x[batch, tokens, hidden], g[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config: llama.Config = LLAMA) -> None:
        self.config = config
        self.scale, self.norm = Param(64), Param(64)

    def forward(self, x: Value, g: Value) -> Value:
        a, b, c, d, e = split(x, sizes=(16, 8, 8, 16, 16))
        joined = concat(b, a, c, e, d, axis=-1)
        turned = transpose(split_heads(joined, 4), order=(0, 1, 3, 2))
        flat = merge_heads(turned) * self.scale
        y: Value = relu(flat / 2.0) + silu(x) * g - rms_norm(x[..., 16:32], self.norm[:16],
                                                             eps=1e-5)[..., :1] * x
        return y


def test_other_operations(golden: Golden) -> None:
    made = program(Mixed())
    check_program(made, "910b")
    golden("ascend/mixed.txt", re.sub("  # .*", "", program_text(made)))


def test_swiglu_of_halves_that_are_the_other_way_round_is_two_operations() -> None:
    class Turned(llama.LlamaLayer):
        def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
            up, gate = split(x, sizes=(32, 32))
            y: Value = concat(silu(gate) * up, up, axis=-1)
            return y

    assert ops(graph(program(Turned(LLAMA)), "decode", "Turned")) == [
        "Split", "SWISH", "MUL", "Concat"]


def test_angles_of_a_layers_own_table_are_widened_before_it() -> None:
    class Own(llama.LlamaLayer):
        def __init__(self, config: llama.Config) -> None:
            super().__init__(config)
            self.tables = [Param(32, 8), Param(32, 8)]

        def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
            tables = [cast(embedding(positions, t), dtype="f32") for t in self.tables]
            return super().forward(x, positions, *tables)

    made = program(Own(LLAMA))
    check_program(made, "910b")
    assert ops(graph(made, "decode")) == LLAMA_OPS
    assert ops(graph(made, "decode", "begin"))[:4] == ["Gather", "CAST", "Gather", "CAST"]


def test_rope_of_one_value_alone() -> None:
    class One(llama.LlamaLayer):
        def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
            y: Value = merge_heads(rope(split_heads(x, 4), cos, sin))
            return y

    made = graph(program(One(LLAMA)), "decode", "One")
    (node,) = made.nodes
    assert node.inputs[0] == node.inputs[1]
    assert node.fields == (("rotaryCoeff", 2),)
