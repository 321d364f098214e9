"""The sources use no name that ATB 8.1 to 9.1 and ACL do not have in common: lists made from what
is known of their interfaces, never from the emulation's headers."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from lowercase import CHATGLM, GLM, GPT2, LLAMA, QWEN, program
from rendercase import Llama, flowing_zoo, linear_add

from graphdsl.backend import find_backend
from graphdsl.backends.ascend import render as rendering
from graphdsl.backends.ascend.render import render, render_graph, runner_files
from graphdsl.borders.masks import with_mask
from graphdsl.layer import trace
from graphdsl.models import chatglm, glm, gpt2, llama, qwen
from graphdsl.passes.pipeline import run_pipeline


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CORE = words("""Status Dims TensorDesc Tensor VariantPack ReshapeFunc Node GraphParam SVector
Operation Context CreateOperation DestroyOperation CreateContext DestroyContext Utils
Utils::GetTensorSize NO_ERROR""")

METHODS = words("""InferShape GetInputNum GetOutputNum Setup Execute SetExecuteStream""")

ACL = words("""aclDataType aclFormat aclError aclrtStream aclInit aclrtSetDevice
aclrtCreateStream aclrtDestroyStream aclrtSynchronizeStream aclrtMalloc aclrtFree aclrtMemcpy
ACL_DT_UNDEFINED ACL_FLOAT ACL_FLOAT16 ACL_BF16 ACL_INT32 ACL_BOOL ACL_FORMAT_ND
ACL_FORMAT_FRACTAL_NZ ACL_MEM_MALLOC_HUGE_FIRST ACL_MEMCPY_HOST_TO_DEVICE""")

FREE = frozenset(f"ACTIVATION_{name}" for name in (
    "RELU", "GELU", "FAST_GELU", "SWISH", "LOG", "SWIGLU_FORWARD", "SIGMOID"))

FIELDS = {
    "Linear": "transposeA transposeB hasBias outDataType enAccum matmulType",
    "RmsNorm": "layerType normParam.quantType normParam.epsilon normParam.precisionMode "
               "normParam.modelType preNormParam.epsilon preNormParam.hasBias",
    "LayerNorm": "layerType normParam.quantType normParam.epsilon normParam.beginNormAxis "
                 "normParam.beginParamsAxis",
    "Rope": "rotaryCoeff cosFormat",
    "SelfAttention": "quantType outDataType headNum kvHeadNum qScale qkScale batchRunStatusEnable "
                     "isTriuMask calcType kernelType clampType clampMin clampMax maskType "
                     "kvcacheCfg scaleType inputLayout mlaVHeadSize cacheType windowSize",
    "PagedAttention": "headNum qkScale kvHeadNum maskType batchRunStatusEnable quantType "
                      "outDataType hasQuantOffset compressType calcType scaleType inputLayout "
                      "mlaVHeadSize",
    "ReshapeAndCache": "compressType kvCacheCfg",
    "KvCache": "",
    "Elewise": "elewiseType quantParam.inputScale quantParam.asymmetric quantParam.inputOffset "
               "mulsParam.varAttr outTensorType",
    "Activation": "activationType scale dim geluMode",
    "Split": "splitDim splitNum splitSizes",
    "Concat": "concatDim",
    "Transpose": "perm",
    "Slice": "offsets size",
    "Gather": "axis batchDims",
    "Softmax": "axes",
    "Transdata": "transdataType outCrops",
}
"""Those that 8.1 has too: no quantMode of Linear, no qScale of PagedAttention."""

ENUMERATORS = {
    "RmsNorm": "RMS_NORM_NORM RMS_NORM_PRENORM RMS_NORM_POSTNORM HIGH_PRECISION_MODE LLAMA_MODEL "
               "GEMMA_MODEL",
    "LayerNorm": "LAYER_NORM_NORM LAYER_NORM_PRENORM LAYER_NORM_POSTNORM",
    "SelfAttention": "UNDEFINED ENCODER DECODER PA_ENCODER PREFIX_ENCODER MASK_TYPE_UNDEFINED "
                     "MASK_TYPE_NORM MASK_TYPE_ALIBI MASK_TYPE_NORM_COMPRESS "
                     "MASK_TYPE_SLIDING_WINDOW_NORM K_CACHE_V_CACHE K_BYPASS_V_BYPASS "
                     "TYPE_QUANT_UNQUANT",
    "PagedAttention": "UNDEFINED MASK_TYPE_NORM MASK_TYPE_ALIBI CALC_TYPE_UNDEFINED",
    "ReshapeAndCache": "K_CACHE_V_CACHE K_CACHE_V_BYPASS K_CACHE_V_CACHE_NZ",
    "Elewise": " ".join(f"ELEWISE_{name}" for name in (
        "CAST", "MULS", "COS", "SIN", "NEG", "ADD", "MUL", "REALDIV", "LESS", "GREATER", "SUB",
        "EQUAL", "TANH", "LOGICAL_NOT", "LOGICAL_AND", "LOGICAL_OR")),
    "Activation": "TANH_MODE",
    "Transdata": "ND_TO_FRACTAL_NZ FRACTAL_NZ_TO_ND",
}


@cache
def sources() -> tuple[tuple[str, str], ...]:
    """Everything that is rendered: for programs written by hand, and for lowered layers."""
    return tuple(_sources())


def _sources() -> Iterator[tuple[str, str]]:
    for case in (Llama().case(), Llama("bf16").case(), linear_add()):
        yield from render(case.program, case.ports, case.dims).items()
    yield "src/Zoo.cpp", render_graph(flowing_zoo())
    layers = (llama.LlamaLayer(LLAMA), qwen.Qwen3Layer(QWEN), glm.GlmLayer(GLM),
              chatglm.ChatGLM2Layer(CHATGLM), gpt2.GPT2Layer(GPT2))
    for layer, soc, policy in product(layers, ("910b", "310p"), ("paged", "contiguous")):
        phases = program(layer, soc=soc, policy=policy).phases
        for graph in dict.fromkeys(g for phase in phases for g in phase.graphs):
            yield f"{soc}/{policy}/{graph.name}.cpp", render_graph(graph)
    backend = find_backend("ascend")
    masked = with_mask(trace(llama.LlamaLayer(LLAMA), "f16"), "bool")
    lowered = run_pipeline(masked, backend.target, {"kv_layout": {"policy": "contiguous"}})
    yield from backend.render(backend.plan(lowered), "").items()


def code(text: str) -> str:
    return re.sub(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"', " ", text, flags=re.DOTALL)


def generated() -> Iterator[tuple[str, str]]:
    return ((path, code(text)) for path, text in sources() if not path.endswith("abi.h"))


def unknown(text: str) -> set[str]:
    """Names of ATB and ACL in C++ text that are not on the lists."""
    found = set(re.findall(r"\batb::((?:\w+::)*\w+)", text))
    params = {name.removeprefix("infer::") for name in found if name.startswith("infer::")}
    odd = {name for name in found - CORE if not name.startswith("infer::")}
    for name in params:
        op, _, enumerator = name.partition("Param::")
        if enumerator:
            fits = enumerator in ENUMERATORS.get(op, "").split()
        else:
            fits = name in FREE or (name.endswith("Param") and name[:-5] in FIELDS)
        odd |= set() if fits else {name}
    odd |= set(re.findall(r"\b(?:aclr?t?[A-Z]\w+|ACL_\w+)\b", text)) - ACL
    return odd


def unknown_fields(text: str) -> set[str]:
    """Fields of params that are not on the lists."""
    odd = set()
    for op, block in re.findall(r"atb::infer::(\w+)Param param\{\};(.*?)graph\.Add", text,
                                re.DOTALL):
        fields = re.findall(r"param\.([\w.]+) =", block)
        odd |= {f"{op}.{name}" for name in fields if name not in FIELDS[op].split()}
    return odd


def test_only_names_that_atb_and_acl_have_are_used() -> None:
    for path, text in generated():
        assert not unknown(text), path


def test_only_fields_that_every_atb_has_are_set() -> None:
    for path, text in generated():
        assert not unknown_fields(text), path


def test_only_methods_that_operations_and_contexts_have_are_called() -> None:
    for path, text in generated():
        called = set(re.findall(r"\b(?:operation_?|context_)->(\w+)\(", text))
        assert called <= METHODS, path


def test_every_param_is_value_initialised() -> None:
    for path, text in generated():
        made = re.findall(r"atb::infer::\w+Param \w+[^;]*;", text)
        assert all(each.endswith(" param{};") for each in made), path


def test_sources_know_nothing_of_an_emulation() -> None:
    for path, text in sources():
        if path.endswith("abi.h"):
            continue
        directives = set(re.findall(r"^\s*#\s*(\w+)", text, re.MULTILINE))
        assert directives <= {"include", "pragma"}, path
        assert "emulation" not in text.lower(), path
        assert "__attribute__((weak))" not in text, path


def test_only_acl_atb_and_standard_headers_are_included() -> None:
    for path, text in sources():
        system = set(re.findall(r"#include <([^>]+)>", text))
        assert {name for name in system if "/" in name} <= {"acl/acl.h", "atb/atb_infer.h"}, path


def test_no_infer_shape_function_is_set() -> None:
    assert not any("inferShapeFunc" in text for _, text in generated())


def test_the_check_finds_what_is_not_there() -> None:
    assert unknown("atb::SetLaunchMode(x); aclrtMemset(p); ACL_INT4; atb::infer::FooParam p;"
                   "atb::infer::LinearParam::MATMUL;") == {
        "SetLaunchMode", "aclrtMemset", "ACL_INT4", "FooParam", "LinearParam::MATMUL"}
    assert unknown_fields("atb::infer::PagedAttentionParam param{}; param.qScale = 1.0f; "
                          "graph.Add(") == {"PagedAttention.qScale"}


def test_headers_are_short() -> None:
    for path, text in runner_files().items():
        lines = text.splitlines()
        assert len(lines) < 400, path
        assert max(map(len, lines)) <= 100, path


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_every_operation_compiles(tmp_path: Path) -> None:
    for name, text in {**runner_files(), "src/Zoo.cpp": render_graph(flowing_zoo())}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    includes = Path(rendering.__file__).parent / "emulation" / "include"
    done = subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                           f"-I{includes}", str(tmp_path / "src" / "Zoo.cpp")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
