"""Programs of small layers and models, for the tests of the lowering."""

from __future__ import annotations

from typing import Any

from graphdsl.backends.ascend.atb import Graph, Program
from graphdsl.backends.ascend.lowering import program_of
from graphdsl.backends.ascend.target import target
from graphdsl.ir import Graph as Traced
from graphdsl.layer import Layer, trace
from graphdsl.models import chatglm, glm, gpt2, llama, qwen
from graphdsl.passes.pipeline import Options, run_pipeline

SIZES: dict[str, Any] = {"vocab": 48, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96,
                         "layers": 3}
LLAMA = llama.Config(**SIZES, head_dim=16)
QWEN = qwen.Config(**SIZES, head_dim=16)
GLM = glm.Config(**SIZES, head_dim=32, rotary_dim=16)
CHATGLM = chatglm.Config(**SIZES, head_dim=32)
GPT2 = gpt2.Config(vocab=48, hidden=64, heads=4, ffn=96, layers=2, max_positions=64)


def program(layer: Layer | Traced, dtype: str = "f16", soc: str = "910b",
            policy: str = "paged", options: Options | None = None) -> Program:
    """The program of a layer or model."""
    chosen = {"kv_layout": {"policy": policy}} if policy != "paged" else {}
    lowered = run_pipeline(trace(layer, dtype), target(soc), {**chosen, **(options or {})})
    return program_of(lowered.graph, soc)


def graph(made: Program, phase: str, part: str = "") -> Graph:
    """The graph of a phase, or the one of it that ends with `part`."""
    (chosen,) = (p for p in made.phases if p.name == phase)
    wanted = part or phase
    (found,) = (g for g in chosen.graphs if g.name.endswith(wanted))
    return found


def ops(made: Graph) -> list[str]:
    """What the nodes are, with the kind of those that come in several."""
    kinds = ("elewiseType", "activationType", "layerType")
    found = []
    for node in made.nodes:
        kind = next((str(getattr(v, "name", v)) for k, v in node.fields if k in kinds), "")
        found.append(kind.removeprefix("ELEWISE_").removeprefix("ACTIVATION_") or node.op)
    return found
