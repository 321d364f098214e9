"""Programs of ATB compute what their graphs say: run in torch, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from atb_reference import Step, in_tiles
from torch import Tensor

from graphdsl.backends.ascend.atb import Program
from graphdsl.backends.ascend.checks import check_program
from graphdsl.backends.ascend.lowering import program_of
from graphdsl.backends.ascend.target import target
from graphdsl.ir import Graph, Size, Value, size_value
from graphdsl.layer import Layer, trace
from graphdsl.lazy import torch_dtype
from graphdsl.models import chatglm, glm, gpt2, llama, qwen
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.recipes import recipe_json, run_recipe
from graphdsl.reference import TOLERANCE, error_of, run

SIZES: dict[str, Any] = {"vocab": 48, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96,
                         "layers": 2}
LLAMA = llama.Config(**SIZES, head_dim=16)
QWEN = qwen.Config(**SIZES, head_dim=16)
GLM = glm.Config(**SIZES, head_dim=32, rotary_dim=16)
CHATGLM = chatglm.Config(**SIZES, head_dim=32)
GPT2 = gpt2.Config(vocab=48, hidden=64, heads=4, ffn=96, layers=2, max_positions=64)
BLOCK, PAGES = 16, 3
LAYERS: dict[str, Callable[[], Layer]] = {
    "llama": lambda: llama.LlamaLayer(LLAMA), "qwen2": lambda: qwen.Qwen2Layer(QWEN),
    "qwen3": lambda: qwen.Qwen3Layer(QWEN), "glm": lambda: glm.GlmLayer(GLM),
    "chatglm": lambda: chatglm.ChatGLM2Layer(CHATGLM), "gpt2": lambda: gpt2.GPT2Layer(GPT2)}
MODELS: dict[str, Callable[[], Layer]] = {
    "llama": lambda: llama.Llama(LLAMA), "qwen3": lambda: qwen.Qwen3(QWEN),
    "glm": lambda: glm.Glm(GLM), "gpt2": lambda: gpt2.GPT2(GPT2)}
POSITIONS = {
    "prefill": [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1]],
    "decode": [[17], [30]],
    "chunk": [[9, 10, 11, 12], [-1, -1, 14, 15]],
    "contiguous": [[9, 10, 11], [20, 21, 22]],
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Of matrices as small as these, several threads make slow ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Setup:
    """Tensors of a layer or model, by name."""

    inputs: Mapping[str, Tensor]
    params: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


def _random(value: Value, sizes: tuple[int, ...]) -> Tensor:
    scale = 0.3 if len(sizes) > 1 else 1.0
    return (torch.randn(sizes) * scale).to(torch_dtype(value.dtype))


def _numbers(shape: tuple[Size, ...]) -> tuple[int, ...]:
    return tuple(size_value(size, {}) for size in shape)


def _setup(graph: Graph, positions: Tensor, slots: int) -> Setup:
    batch, tokens = positions.shape
    torch.manual_seed(1)
    rows = (positions >= 0).int().argmax(1, keepdim=True)
    inputs: dict[str, Tensor] = {"positions": positions, "rows": rows.int(),
                                 "ids": torch.randint(0, 48, (batch, tokens)).int()}
    for value in graph.inputs:
        width = value.shape[-1]
        if value.name in ("cos", "sin"):
            assert isinstance(width, int)
            angles = positions.unsqueeze(-1) * torch.logspace(0, -3, width)
            inputs[value.name] = angles.cos() if value.name == "cos" else angles.sin()
        elif value.name == "x":
            assert isinstance(width, int)
            inputs["x"] = _random(value, (batch, tokens, width))
    params = {v.name: _random(v, _numbers(v.shape)) for v in graph.params}
    state = {v.name: _random(v, (batch, slots, *_numbers(v.shape[2:]))) for v in graph.state}
    names = {v.name for v in graph.inputs}
    return Setup({k: v for k, v in inputs.items() if k in names}, params, state)


def _paged(cache: Tensor, table: Tensor, nz: bool) -> Tensor:
    """A cache in the blocks that the table names; other blocks hold nan."""
    batch, _, heads, dim = cache.shape
    pool = torch.full((batch * PAGES + 1, BLOCK, heads, dim), torch.nan, dtype=cache.dtype)
    pool[table.long()] = cache.reshape(batch, PAGES, BLOCK, heads, dim)
    if not nz:
        return pool
    return pool.reshape(-1, BLOCK, heads * dim // 16, 16).permute(0, 2, 1, 3).contiguous()


def _contiguous(cache: Tensor, nz: bool) -> Tensor:
    batch, slots = cache.shape[:2]
    flat = cache.reshape(1, batch, slots, -1).clone()
    return flat.reshape(1, batch, slots, -1, 16).permute(0, 1, 3, 2, 4).clone() if nz else flat


@cache
def _made(make: Callable[[], Layer], contiguous: bool, dtype: str, soc: str,
          rolled: bool) -> tuple[Graph, Mapping[str, Graph], Program]:
    """A traced graph, and the recipes and the program of what the passes make of it."""
    graph = trace(make(), dtype)
    options = {"policy": "contiguous"} if contiguous else {"policy": "paged", "block": str(BLOCK)}
    lowered = run_pipeline(graph, target(soc), {"kv_layout": options,
                                                "angle_table": {"rows": "64"},
                                                "roll": {"min_turns": "2" if rolled else "99"}})
    program = program_of(lowered.graph, soc)
    check_program(program, soc)
    made = {p.name: r for p in lowered.graph.params if (r := lowered.recipes.get(p.name))}
    return graph, made, program


def _check(make: Callable[[], Layer], case: str, dtype: str = "f16", soc: str = "910b",
           rolled: bool = True) -> None:
    """The program's results are those of the graph, in every row that is no padding."""
    contiguous = case == "contiguous"
    graph, recipes, program = _made(make, contiguous, dtype, soc, rolled)
    positions = torch.tensor(POSITIONS[case], dtype=torch.int32)
    batch, tokens = positions.shape
    slots = 25 if contiguous else BLOCK * PAGES
    setup = _setup(graph, positions, slots)
    nz = soc == "310p"
    order = torch.randperm(batch * PAGES + 1)[:batch * PAGES]
    table = order.reshape(batch, PAGES).int()
    tensors = {**setup.params, **{n: run_recipe(recipe_json(r), setup.params)
                                  for n, r in recipes.items()}}
    for port in program.ports:
        if port.format == "nz" and port.name in tensors:
            tensors[port.name] = in_tiles(tensors[port.name])
        if port.name in setup.inputs:
            given = setup.inputs[port.name]
            tensors[port.name] = given.reshape(-1, *given.shape[2:])
    for name, old in setup.state.items():
        tensors[name] = _contiguous(old, nz) if contiguous else _paged(old, table, nz)
    tensors["block_table"] = table
    dims = {"batch": batch, "tokens": tokens, "outputs": 1, "slots": slots, "pages": PAGES,
            "blocks": batch * PAGES + 1}
    made = Step(program, tensors, dims).run("decode" if case == "chunk" else case)
    expected = run(graph, setup.inputs, setup.params, setup.state)
    # Every layer rounds what the one before has rounded.
    most = TOLERANCE[dtype] * (2 if len(setup.state) > 2 else 1)
    seen = (positions >= 0).reshape(-1)
    for i, value in enumerate(graph.results):
        ours = made[f"output{i}"]
        theirs = expected[i].reshape(ours.shape)
        kept = seen if len(seen) == len(ours) else slice(None)
        assert error_of(ours[kept], theirs[kept]) < most, value
    for name, filled in zip(setup.state, expected[len(graph.results):], strict=True):
        new = _contiguous(filled, nz) if contiguous else _paged(filled, table, nz)
        assert error_of(made[name], new) < most, name


@pytest.mark.parametrize("case", POSITIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_their_graphs_say(name: str, case: str) -> None:
    _check(LAYERS[name], case)


@pytest.mark.parametrize("name", ["llama", "glm"])
@pytest.mark.parametrize("case", ["prefill", "contiguous"])
def test_layers_in_bf16(name: str, case: str) -> None:
    _check(LAYERS[name], case, dtype="bf16")


@pytest.mark.parametrize("name", ["llama", "chatglm"])
@pytest.mark.parametrize("case", POSITIONS)
def test_layers_with_caches_in_tiles(name: str, case: str) -> None:
    _check(LAYERS[name], case, soc="310p")


@pytest.mark.parametrize("case", POSITIONS)
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_what_their_graphs_say(name: str, case: str) -> None:
    _check(MODELS[name], case)


def test_models_in_bf16_cast_the_rows_of_tables() -> None:
    _check(MODELS["llama"], "decode", dtype="bf16")


def test_windows_of_contiguous_caches_are_masks() -> None:
    config = qwen.Config(**SIZES, head_dim=16, window=6, sliding=(1,))
    _check(lambda: qwen.Qwen2(config), "contiguous")


@pytest.mark.parametrize("case", ["prefill", "decode"])
def test_layers_that_share_a_graph(case: str) -> None:
    _check(lambda: llama.Llama(replace(LLAMA, layers=4)), case, rolled=False)


def test_results_of_every_layer() -> None:
    config = replace(LLAMA, hidden_states=True)
    _check(lambda: llama.Llama(config), "prefill")


def test_models_of_embeddings_with_tied_heads() -> None:
    config = replace(LLAMA, embeddings=True, tied=True)
    _check(lambda: llama.Llama(config), "decode")
