"""Types, error codes, params and their defaults are those that ATB's documentation has."""

from __future__ import annotations

import re

import pytest
from headers import body, enumerators, fields, text

from graphdsl.backends.ascend.atb import DataType, Enum, Field
from graphdsl.backends.ascend.tables import ENUMS, FIELDS

PARAMS = "atb/infer_op_params.h"

ERRORS = """NO_ERROR ERROR_INVALID_PARAM ERROR_INVALID_GRAPH ERROR_INTERNAL_ERROR ERROR_RT_FAIL
ERROR_INVALID_IN_TENSOR_NUM ERROR_INVALID_TENSOR_DTYPE ERROR_INVALID_TENSOR_FORMAT
ERROR_INVALID_TENSOR_DIM ERROR_INVALID_TENSOR_SIZE ERROR_OPERATION_NULL_RUNNER
ERROR_GRAPH_INFERSHAPE_FUNC_FAIL ERROR_CANN_ERROR ERROR_INVALID_TENSOR_INI_MATCH
ERROR_INVALID_TENSOR_ADDR ERROR_INVALID_TENSOR_NUM ERROR_INVALID_TENSOR_DIM_NUM
ERROR_INVALID_SINGLE_OPERATION_PARAM ERROR_GRAPH_NODE_RESHAPE_FUNC_FAIL
ERROR_INVALID_GRAPH_NODE_CHUNK ERROR_INVALID_CONTEXT_ADDR ERROR_INVALID_STREAM
ERROR_INVALID_WORKSPACE_SIZE ERROR_INVALID_WORKSPACE_ADDR ERROR_INVALID_OPERATION_ADDR
ERROR_HCCL_FAIL ERROR_OUT_OF_DEVICE_MEMORY ERROR_OUT_OF_HOST_MEMORY ERROR_COMM_EMPTY
ERROR_COPY_HOST_MEMORY_FAIL"""

DTYPES = {"ACL_FLOAT": 0, "ACL_FLOAT16": 1, "ACL_INT8": 2, "ACL_INT32": 3, "ACL_UINT32": 8,
          "ACL_INT64": 9, "ACL_UINT64": 10, "ACL_BOOL": 12, "ACL_BF16": 27, "ACL_DT_UNDEFINED": -1}
FORMATS = {"ACL_FORMAT_NCHW": 0, "ACL_FORMAT_ND": 2, "ACL_FORMAT_FRACTAL_NZ": 29,
           "ACL_FORMAT_UNDEFINED": -1}

DEFAULTS = {
    "LinearParam": "transposeA=false transposeB=true hasBias=true outDataType=ACL_DT_UNDEFINED "
                   "enAccum=false matmulType=MATMUL_UNDEFINED",
    "RmsNormParam": "layerType=RMS_NORM_UNDEFINED",
    "RmsNormParam.NormParam": "quantType=QUANT_UNQUANT epsilon=1e-5 layerNormEps=1e-5 rstd=false "
                              "precisionMode=HIGH_PRECISION_MODE modelType=LLAMA_MODEL",
    "RmsNormParam.PreNormParam": "quantType=QUANT_UNQUANT epsilon=1e-5 hasBias=false",
    "RmsNormParam.PostNormParam": "quantType=QUANT_UNQUANT epsilon=1e-5 hasBias=false",
    "LayerNormParam": "layerType=LAYER_NORM_UNDEFINED",
    "LayerNormParam.NormParam": "quantType=QUANT_UNQUANT epsilon=1e-5 beginNormAxis=0 "
                                "beginParamsAxis=0",
    "LayerNormParam.PreNormParam": "epsilon=1e-5 opMode=0 zoomScaleValue=1.0",
    "LayerNormParam.PostNormParam": "epsilon=1e-5 opMode=0 zoomScaleValue=1.0",
    "RopeParam": "rotaryCoeff=4 cosFormat=0",
    "SelfAttentionParam": "quantType=TYPE_QUANT_UNQUANT outDataType=ACL_DT_UNDEFINED headNum=0 "
                          "kvHeadNum=0 qScale=1.0 qkScale=1.0 batchRunStatusEnable=false "
                          "isTriuMask=0 calcType=UNDEFINED kernelType=KERNELTYPE_DEFAULT "
                          "clampType=CLAMP_TYPE_UNDEFINED clampMin=0.0 clampMax=0.0 "
                          "maskType=MASK_TYPE_UNDEFINED kvcacheCfg=K_CACHE_V_CACHE "
                          "scaleType=SCALE_TYPE_TOR inputLayout=TYPE_BSND mlaVHeadSize=0 "
                          "cacheType=CACHE_TYPE_NORM windowSize=0",
    "PagedAttentionParam": "headNum=0 qkScale=1.0 kvHeadNum=0 maskType=UNDEFINED "
                           "batchRunStatusEnable=false quantType=TYPE_QUANT_UNQUANT "
                           "outDataType=ACL_DT_UNDEFINED hasQuantOffset=false "
                           "compressType=COMPRESS_TYPE_UNDEFINED calcType=CALC_TYPE_UNDEFINED "
                           "scaleType=SCALE_TYPE_TOR inputLayout=TYPE_BSND mlaVHeadSize=0",
    "ReshapeAndCacheParam": "compressType=COMPRESS_TYPE_UNDEFINED kvCacheCfg=K_CACHE_V_CACHE",
    "KvCacheParam": "",
    "ElewiseParam": "elewiseType=ELEWISE_UNDEFINED outTensorType=ACL_DT_UNDEFINED",
    "ElewiseParam.QuantParam": "inputScale=1.0 asymmetric=false inputOffset=0",
    "ElewiseParam.MulsParam": "varAttr=0.0",
    "ActivationParam": "activationType=ACTIVATION_UNDEFINED scale=1.0 dim=-1 geluMode=TANH_MODE",
    "SplitParam": "splitDim=0 splitNum=2 splitSizes={}",
    "ConcatParam": "concatDim=0",
    "TransposeParam": "perm=",
    "SliceParam": "offsets= size=",
    "GatherParam": "axis=0 batchDims=0",
    "SoftmaxParam": "axes=",
    "TransdataParam": "transdataType=UNDEFINED",
}

ENUMERATORS = {
    ("ActivationType", ""): "ACTIVATION_UNDEFINED ACTIVATION_RELU ACTIVATION_GELU "
                            "ACTIVATION_FAST_GELU ACTIVATION_SWISH ACTIVATION_LOG "
                            "ACTIVATION_SWIGLU_FORWARD ACTIVATION_SWIGLU_BACKWARD "
                            "ACTIVATION_SIGMOID ACTIVATION_FASTER_GELU_FORWARD",
    ("ElewiseType", "ElewiseParam"):
        "ELEWISE_UNDEFINED ELEWISE_CAST ELEWISE_MULS ELEWISE_COS ELEWISE_SIN ELEWISE_NEG "
        "ELEWISE_QUANT ELEWISE_LOGICAL_NOT ELEWISE_ADD ELEWISE_MUL ELEWISE_REALDIV "
        "ELEWISE_LOGICAL_AND ELEWISE_LOGICAL_OR ELEWISE_LESS ELEWISE_GREATER ELEWISE_SUB "
        "ELEWISE_EQUAL ELEWISE_QUANT_PER_CHANNEL ELEWISE_DEQUANT_PER_CHANNEL "
        "ELEWISE_DYNAMIC_QUANT ELEWISE_TANH",
    ("CalcType", "SelfAttentionParam"): "UNDEFINED ENCODER DECODER PA_ENCODER PREFIX_ENCODER",
    ("MaskType", "SelfAttentionParam"):
        "MASK_TYPE_UNDEFINED MASK_TYPE_NORM MASK_TYPE_ALIBI MASK_TYPE_NORM_COMPRESS "
        "MASK_TYPE_ALIBI_COMPRESS MASK_TYPE_ALIBI_COMPRESS_SQRT "
        "MASK_TYPE_ALIBI_COMPRESS_LEFT_ALIGN MASK_TYPE_SLIDING_WINDOW_NORM "
        "MASK_TYPE_SLIDING_WINDOW_COMPRESS",
    ("KvCacheCfg", "SelfAttentionParam"): "K_CACHE_V_CACHE K_BYPASS_V_BYPASS",
    ("MaskType", "PagedAttentionParam"): "UNDEFINED MASK_TYPE_NORM MASK_TYPE_ALIBI "
                                         "MASK_TYPE_SPEC MASK_TYPE_MASK_FREE "
                                         "MASK_TYPE_NORM_COMPRESS",
    ("KvCacheCfg", "ReshapeAndCacheParam"): "K_CACHE_V_CACHE K_CACHE_V_BYPASS K_CACHE_V_CACHE_NZ",
}
"""In order, from 0."""


def plain(value: str) -> str:
    """A default without the f of a float."""
    return re.sub(r"^([\d.e-]+)f$", r"\1", value)


def defaults(name: str) -> dict[str, str]:
    """Those of a param, but for its rsv and the structs in it."""
    outer, _, inner = name.partition(".")
    found = fields(outer, PARAMS)
    if inner:
        match = re.search(rf"struct {inner} {{(.*?)}};", body(outer, PARAMS), re.DOTALL)
        assert match
        found = {key: value for _, key, value in
                 re.findall(r"(\S+) (\w+) = ([^;]+);", match[1])}
    return {key: plain(value) for key, value in found.items() if key != "rsv"}


def test_error_codes_are_those_of_atb() -> None:
    found = enumerators("ErrorType", "atb/types.h")
    assert found == {name: code for code, name in enumerate(ERRORS.split())}


def test_a_status_has_32_bits() -> None:
    assert "using Status = int32_t;" in text("atb/types.h")


def test_dtypes_have_the_numbers_of_acl() -> None:
    found = enumerators("aclDataType", "acl/acl.h")
    assert {name: found[name] for name in DTYPES} == DTYPES


def test_formats_have_the_numbers_of_acl() -> None:
    assert enumerators("aclFormat", "acl/acl.h") == FORMATS


def test_a_desc_is_undefined_and_a_tensor_empty_until_they_are_filled() -> None:
    assert "MAX_DIM = 8;" in text("atb/types.h")
    assert fields("Dims", "atb/types.h")["dimNum"] == "0"
    assert fields("TensorDesc", "atb/types.h") == {
        "dtype": "ACL_DT_UNDEFINED", "format": "ACL_FORMAT_UNDEFINED", "shape": ""}
    assert fields("Tensor", "atb/types.h") == {"desc": "", "deviceData": "nullptr",
                                               "hostData": "nullptr", "dataSize": "0"}


def test_a_chunk_is_all_of_a_tensor_until_it_is_set() -> None:
    assert fields("Chunk", "atb/types.h") == {"chunkNum": "1", "chunkIndex": "0"}


def test_nodes_and_graphs_have_the_fields_of_atb() -> None:
    assert list(fields("Node", "atb/types.h")) == [
        "operation", "inTensorIds", "outTensorIds", "inTensorReshapeFuncs", "inTensorChunks"]
    assert list(fields("GraphParam", "atb/types.h")) == [
        "name", "inTensorNum", "outTensorNum", "internalTensorNum", "nodes", "inferShapeFunc"]
    assert list(fields("VariantPack", "atb/types.h")) == ["inTensors", "outTensors"]


def test_reshapes_and_shape_functions_have_the_signatures_of_atb() -> None:
    flat = " ".join(text("atb/types.h").split())
    assert "ReshapeFunc = std::function<void(const Dims& oldShape, Dims& newShape)>;" in flat
    assert ("InferShapeFunc = std::function<Status(const SVector<TensorDesc>& inTensorDescs, "
            "SVector<TensorDesc>& outTensorDescs)>;") in flat


def test_every_method_of_an_operation_is_pure() -> None:
    declared = re.findall(r"virtual [^;]*;", body("Operation", "atb/operation.h"))
    names = [re.search(r"(\w+)\(", each) for each in declared if "~" not in each]
    assert [match and match[1] for match in names] == ["GetName", "InferShape", "GetInputNum",
                                                       "GetOutputNum", "Setup", "Execute"]
    assert all(each.endswith("= 0;") for each in declared if "~" not in each)


def test_a_vector_has_no_emplace_back() -> None:
    methods = set(re.findall(r"\b(\w+)\(", body("SVector", "atb/svector.h")))
    assert {"push_back", "insert", "at", "resize", "reserve", "size", "begin", "end"} <= methods
    assert "emplace_back" not in methods


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_params_are_those_of_atb(name: str) -> None:
    wanted = dict(pair.split("=") for pair in DEFAULTS[name].split())
    found = defaults(name)
    assert {key: found[key] for key in wanted} == wanted
    assert "uint8_t rsv[" in body(name.partition(".")[0], PARAMS)


def test_linear_has_a_bias_and_a_transposed_weight_by_default() -> None:
    found = defaults("LinearParam")
    assert (found["hasBias"], found["transposeB"]) == ("true", "true")


@pytest.mark.parametrize(("enum", "within"), ENUMERATORS)
def test_enumerators_have_the_numbers_of_atb(enum: str, within: str) -> None:
    wanted = {name: i for i, name in enumerate(ENUMERATORS[enum, within].split())}
    assert enumerators(enum, PARAMS, within) == wanted


@pytest.mark.parametrize(("where", "name"), [
    ("LinearParam", "quantMode"), ("PagedAttentionParam", "qScale"), ("Context", "SetLaunchMode")])
def test_what_8_1_has_not_is_not_there(where: str, name: str) -> None:
    header = "atb/context.h" if where == "Context" else PARAMS
    assert not re.search(rf"\b{name}\b", body(where, header))


def _written(field: Field) -> str:
    if isinstance(field, Enum):
        return field.name
    if isinstance(field, DataType):
        return "ACL_DT_UNDEFINED"
    return {True: "true", False: "false"}[field] if isinstance(field, bool) else str(field)


@pytest.mark.parametrize("op", FIELDS)
def test_the_tables_of_python_have_the_defaults_of_atb(op: str) -> None:
    for path, default in FIELDS[op].items():
        inner, _, name = path.rpartition(".")
        struct = f"{op}Param.{inner[:1].upper()}{inner[1:]}" if inner else f"{op}Param"
        found = defaults(struct)[name]
        if isinstance(default, tuple):
            assert found in ("", "{}")
        elif isinstance(default, float):
            assert float(found) == default, path
        else:
            assert found == _written(default), path


@pytest.mark.parametrize(("op", "path"), ENUMS)
def test_the_tables_of_python_have_enumerators_of_atb(op: str, path: str) -> None:
    known = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", text(PARAMS)))
    assert set(ENUMS[op, path]) <= known
