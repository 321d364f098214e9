// The params of single operations: the fields that every ATB from 8.1 to 9.1 has.
#pragma once

#include <cstdint>
#include <string>

#include "acl/acl.h"
#include "atb/svector.h"

typedef void* HcclComm;

namespace atb {
namespace infer {

enum InputLayout : int { TYPE_BSND = 0, TYPE_BNSD };

enum QuantType : int {
  QUANT_UNDEFINED = 0,
  QUANT_UNQUANT = 0,
  QUANT_INT4 = 1,
  QUANT_INT8 = 2,
  QUANT_INT16 = 3,
  QUANT_FLOAT8 = 4,
  QUANT_FLOAT16 = 5
};

enum DynamicQuantType : int {
  DYNAMIC_QUANT_UNDEFINED = 0,
  DYNAMIC_QUANT_SYMMETRIC,
  DYNAMIC_QUANT_ASYMMETRIC
};

enum ActivationType : int {
  ACTIVATION_UNDEFINED = 0,
  ACTIVATION_RELU = 1,
  ACTIVATION_GELU = 2,
  ACTIVATION_FAST_GELU = 3,
  ACTIVATION_SWISH = 4,
  ACTIVATION_LOG = 5,
  ACTIVATION_SWIGLU_FORWARD = 6,
  ACTIVATION_SWIGLU_BACKWARD = 7,
  ACTIVATION_SIGMOID = 8,
  ACTIVATION_FASTER_GELU_FORWARD = 9
};

struct LinearParam {
  enum MatmulType : int { MATMUL_UNDEFINED = 0, MATMUL_EIN_SUM };
  bool transposeA = false;
  bool transposeB = true;
  bool hasBias = true;
  aclDataType outDataType = ACL_DT_UNDEFINED;
  bool enAccum = false;
  MatmulType matmulType = MATMUL_UNDEFINED;
  uint8_t rsv[64] = {0};
};

struct RmsNormParam {
  enum RmsNormType : int {
    RMS_NORM_UNDEFINED = 0,
    RMS_NORM_NORM,
    RMS_NORM_PRENORM,
    RMS_NORM_POSTNORM
  };
  enum PrecisionMode : int { HIGH_PRECISION_MODE = 0, HIGH_PERFORMANCE_MODE };
  enum ModelType : int { LLAMA_MODEL = 0, GEMMA_MODEL };
  struct NormParam {
    QuantType quantType = QUANT_UNQUANT;
    float epsilon = 1e-5f;
    double layerNormEps = 1e-5;
    bool rstd = false;
    PrecisionMode precisionMode = HIGH_PRECISION_MODE;
    ModelType modelType = LLAMA_MODEL;
    DynamicQuantType dynamicQuantType = DYNAMIC_QUANT_UNDEFINED;
    uint8_t rsv[32] = {0};
  };
  struct PreNormParam {
    QuantType quantType = QUANT_UNQUANT;
    float epsilon = 1e-5f;
    bool hasBias = false;
    uint8_t rsv[23] = {0};
  };
  struct PostNormParam {
    QuantType quantType = QUANT_UNQUANT;
    float epsilon = 1e-5f;
    bool hasBias = false;
    uint8_t rsv[23] = {0};
  };
  RmsNormType layerType = RMS_NORM_UNDEFINED;
  NormParam normParam;
  PreNormParam preNormParam;
  PostNormParam postNormParam;
  uint8_t rsv[8] = {0};
};

struct LayerNormParam {
  enum LayerNormType : int {
    LAYER_NORM_UNDEFINED = 0,
    LAYER_NORM_NORM,
    LAYER_NORM_PRENORM,
    LAYER_NORM_POSTNORM
  };
  struct NormParam {
    QuantType quantType = QUANT_UNQUANT;
    float epsilon = 1e-5f;
    int32_t beginNormAxis = 0;
    int32_t beginParamsAxis = 0;
    DynamicQuantType dynamicQuantType = DYNAMIC_QUANT_UNDEFINED;
    uint8_t rsv[20] = {0};
  };
  struct PreNormParam {
    QuantType quantType = QUANT_UNQUANT;
    float epsilon = 1e-5f;
    uint64_t opMode = 0;
    float zoomScaleValue = 1.0f;
    uint8_t rsv[20] = {0};
  };
  struct PostNormParam {
    QuantType quantType = QUANT_UNQUANT;
    float epsilon = 1e-5f;
    uint64_t opMode = 0;
    float zoomScaleValue = 1.0f;
    uint8_t rsv[20] = {0};
  };
  LayerNormType layerType = LAYER_NORM_UNDEFINED;
  NormParam normParam;
  PreNormParam preNormParam;
  PostNormParam postNormParam;
  uint8_t rsv[8] = {0};
};

struct RopeParam {
  int32_t rotaryCoeff = 4;
  int32_t cosFormat = 0;
  uint8_t rsv[16] = {0};
};

struct SelfAttentionParam {
  enum CalcType : int { UNDEFINED = 0, ENCODER, DECODER, PA_ENCODER, PREFIX_ENCODER };
  enum KernelType : int { KERNELTYPE_DEFAULT = 0, KERNELTYPE_HIGH_PRECISION };
  enum ClampType : int { CLAMP_TYPE_UNDEFINED = 0, CLAMP_TYPE_MIN_MAX };
  enum MaskType : int {
    MASK_TYPE_UNDEFINED = 0,
    MASK_TYPE_NORM,
    MASK_TYPE_ALIBI,
    MASK_TYPE_NORM_COMPRESS,
    MASK_TYPE_ALIBI_COMPRESS,
    MASK_TYPE_ALIBI_COMPRESS_SQRT,
    MASK_TYPE_ALIBI_COMPRESS_LEFT_ALIGN,
    MASK_TYPE_SLIDING_WINDOW_NORM,
    MASK_TYPE_SLIDING_WINDOW_COMPRESS
  };
  enum KvCacheCfg : int { K_CACHE_V_CACHE = 0, K_BYPASS_V_BYPASS };
  enum ScaleType : int { SCALE_TYPE_TOR = 0, SCALE_TYPE_LOGN };
  enum QuantType : int {
    TYPE_QUANT_UNDEFINED = 0,
    TYPE_QUANT_UNQUANT = 0,
    TYPE_DEQUANT_FUSION = 1,
    TYPE_QUANT_QKV_OFFLINE = 2,
    TYPE_QUANT_QKV_ONLINE = 3
  };
  enum CacheType : int { CACHE_TYPE_NORM = 0, CACHE_TYPE_SWA };
  QuantType quantType = TYPE_QUANT_UNQUANT;
  aclDataType outDataType = ACL_DT_UNDEFINED;
  int32_t headNum = 0;
  int32_t kvHeadNum = 0;
  float qScale = 1.0f;
  float qkScale = 1.0f;
  bool batchRunStatusEnable = false;
  uint32_t isTriuMask = 0;
  CalcType calcType = UNDEFINED;
  KernelType kernelType = KERNELTYPE_DEFAULT;
  ClampType clampType = CLAMP_TYPE_UNDEFINED;
  float clampMin = 0.0f;
  float clampMax = 0.0f;
  MaskType maskType = MASK_TYPE_UNDEFINED;
  KvCacheCfg kvcacheCfg = K_CACHE_V_CACHE;
  ScaleType scaleType = SCALE_TYPE_TOR;
  InputLayout inputLayout = TYPE_BSND;
  uint32_t mlaVHeadSize = 0;
  CacheType cacheType = CACHE_TYPE_NORM;
  uint32_t windowSize = 0;
  uint8_t rsv[64] = {0};
};

struct PagedAttentionParam {
  enum MaskType : int {
    UNDEFINED = 0,
    MASK_TYPE_NORM,
    MASK_TYPE_ALIBI,
    MASK_TYPE_SPEC,
    MASK_TYPE_MASK_FREE,
    MASK_TYPE_NORM_COMPRESS
  };
  enum QuantType : int {
    TYPE_QUANT_UNDEFINED = 0,
    TYPE_QUANT_UNQUANT = 0,
    TYPE_DEQUANT_FUSION = 1,
    TYPE_QUANT_QKV_OFFLINE = 2,
    TYPE_QUANT_QKV_ONLINE = 3
  };
  enum CompressType : int { COMPRESS_TYPE_UNDEFINED = 0, COMPRESS_TYPE_KVHEAD };
  enum CalcType : int { CALC_TYPE_UNDEFINED = 0, CALC_TYPE_SPEC };
  enum ScaleType : int { SCALE_TYPE_TOR = 0, SCALE_TYPE_LOGN };
  int32_t headNum = 0;
  float qkScale = 1.0f;
  int32_t kvHeadNum = 0;
  MaskType maskType = UNDEFINED;
  bool batchRunStatusEnable = false;
  QuantType quantType = TYPE_QUANT_UNQUANT;
  aclDataType outDataType = ACL_DT_UNDEFINED;
  bool hasQuantOffset = false;
  CompressType compressType = COMPRESS_TYPE_UNDEFINED;
  CalcType calcType = CALC_TYPE_UNDEFINED;
  ScaleType scaleType = SCALE_TYPE_TOR;
  InputLayout inputLayout = TYPE_BSND;
  uint32_t mlaVHeadSize = 0;
  uint8_t rsv[64] = {0};
};

struct ReshapeAndCacheParam {
  enum CompressType : int { COMPRESS_TYPE_UNDEFINED = 0, COMPRESS_TYPE_KVHEAD };
  enum KvCacheCfg : int { K_CACHE_V_CACHE = 0, K_CACHE_V_BYPASS, K_CACHE_V_CACHE_NZ };
  CompressType compressType = COMPRESS_TYPE_UNDEFINED;
  KvCacheCfg kvCacheCfg = K_CACHE_V_CACHE;
  uint8_t rsv[16] = {0};
};

struct KvCacheParam {
  uint8_t rsv[8] = {0};
};

struct ElewiseParam {
  enum ElewiseType : int {
    ELEWISE_UNDEFINED = 0,
    ELEWISE_CAST = 1,
    ELEWISE_MULS = 2,
    ELEWISE_COS = 3,
    ELEWISE_SIN = 4,
    ELEWISE_NEG = 5,
    ELEWISE_QUANT = 6,
    ELEWISE_LOGICAL_NOT = 7,
    ELEWISE_ADD = 8,
    ELEWISE_MUL = 9,
    ELEWISE_REALDIV = 10,
    ELEWISE_LOGICAL_AND = 11,
    ELEWISE_LOGICAL_OR = 12,
    ELEWISE_LESS = 13,
    ELEWISE_GREATER = 14,
    ELEWISE_SUB = 15,
    ELEWISE_EQUAL = 16,
    ELEWISE_QUANT_PER_CHANNEL = 17,
    ELEWISE_DEQUANT_PER_CHANNEL = 18,
    ELEWISE_DYNAMIC_QUANT = 19,
    ELEWISE_TANH = 20
  };
  struct QuantParam {
    float inputScale = 1.0f;
    bool asymmetric = false;
    int inputOffset = 0;
    uint8_t rsv[20] = {0};
  };
  struct MulsParam {
    float varAttr = 0.0f;
    uint8_t rsv[12] = {0};
  };
  ElewiseType elewiseType = ELEWISE_UNDEFINED;
  QuantParam quantParam;
  MulsParam mulsParam;
  aclDataType outTensorType = ACL_DT_UNDEFINED;
  uint8_t rsv[8] = {0};
};

struct ActivationParam {
  enum GeLUMode : int { TANH_MODE = 0, NONE_MODE };
  ActivationType activationType = ACTIVATION_UNDEFINED;
  float scale = 1.0f;
  int32_t dim = -1;
  GeLUMode geluMode = TANH_MODE;
  uint8_t rsv[8] = {0};
};

struct SplitParam {
  int32_t splitDim = 0;
  int32_t splitNum = 2;
  SVector<int32_t> splitSizes = {};
  uint8_t rsv[8] = {0};
};

struct ConcatParam {
  int concatDim = 0;
  uint8_t rsv[12] = {0};
};

struct TransposeParam {
  SVector<int32_t> perm;
  uint8_t rsv[8] = {0};
};

struct SliceParam {
  SVector<int64_t> offsets;
  SVector<int64_t> size;
  uint8_t rsv[8] = {0};
};

struct GatherParam {
  int64_t axis = 0;
  int64_t batchDims = 0;
  uint8_t rsv[16] = {0};
};

struct SoftmaxParam {
  SVector<int64_t> axes;
  uint8_t rsv[8] = {0};
};

struct TransdataParam {
  enum TransdataType : int { UNDEFINED = 0, FRACTAL_NZ_TO_ND, ND_TO_FRACTAL_NZ };
  TransdataType transdataType = UNDEFINED;
  SVector<int64_t> outCrops = {0, 0};
  uint8_t rsv[8] = {0};
};

enum CommMode : int { COMM_UNDEFINED = -1, COMM_MULTI_PROCESS, COMM_MULTI_THREAD };

struct AllReduceParam {
  int rank = 0;
  int rankSize = 0;
  int rankRoot = 0;
  std::string allReduceType = "sum";
  std::string backend = "hccl";
  HcclComm hcclComm = nullptr;
  CommMode commMode = COMM_MULTI_PROCESS;
  std::string rankTableFile;
  std::string commDomain;
  uint8_t rsv[64] = {0};
};

struct LinearParallelParam {
  enum ParallelType : int {
    UNDEFINED = -1,
    LINEAR_ALL_REDUCE = 0,
    LINEAR_REDUCE_SCATTER,
    ALL_GATHER_LINEAR,
    PURE_LINEAR
  };
  bool transWeight = true;
  int rank = 0;
  int rankSize = 0;
  int rankRoot = 0;
  bool hasResidual = false;
  std::string backend = "hccl";
  HcclComm hcclComm = nullptr;
  CommMode commMode = COMM_MULTI_PROCESS;
  std::string rankTableFile;
  ParallelType type = LINEAR_ALL_REDUCE;
  bool keepIntermediate = false;
  std::string commDomain;
  uint8_t rsv[64] = {0};
};

} // namespace infer
} // namespace atb
