// What the library says when something is wrong: texts of shapes, dtypes and codes of ATB, and the
// last error of a thread.
#pragma once
#include <acl/acl.h>
#include <atb/atb_infer.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// What the runtime itself last complained about, or an empty string where it has a log of its own.
extern "C" const char* gdsl_runtime_log();

// Hidden, so that two libraries in one process share no variable.
namespace gdsl __attribute__((visibility("hidden"))) {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string& LastError() {
  thread_local std::string text;
  return text;
}

inline std::string DtypeText(aclDataType dtype) {
  switch (dtype) {
    case ACL_FLOAT: return "f32";
    case ACL_FLOAT16: return "f16";
    case ACL_BF16: return "bf16";
    case ACL_INT32: return "i32";
    default: return "dtype " + std::to_string(static_cast<int>(dtype));
  }
}

inline std::string DescText(const atb::TensorDesc& desc) {
  std::string text = DtypeText(desc.dtype) + "[";
  for (uint64_t i = 0; i < desc.shape.dimNum; ++i) {
    text += (i ? ", " : "") + std::to_string(desc.shape.dims[i]);
  }
  return text + (desc.format == ACL_FORMAT_FRACTAL_NZ ? "] nz" : "]");
}

inline std::string StatusText(atb::Status status) {
  static const char* const names[] = {
      "NO_ERROR", "ERROR_INVALID_PARAM", "ERROR_INVALID_GRAPH", "ERROR_INTERNAL_ERROR",
      "ERROR_RT_FAIL", "ERROR_INVALID_IN_TENSOR_NUM", "ERROR_INVALID_TENSOR_DTYPE",
      "ERROR_INVALID_TENSOR_FORMAT", "ERROR_INVALID_TENSOR_DIM", "ERROR_INVALID_TENSOR_SIZE",
      "ERROR_OPERATION_NULL_RUNNER", "ERROR_GRAPH_INFERSHAPE_FUNC_FAIL", "ERROR_CANN_ERROR",
      "ERROR_INVALID_TENSOR_INI_MATCH", "ERROR_INVALID_TENSOR_ADDR", "ERROR_INVALID_TENSOR_NUM",
      "ERROR_INVALID_TENSOR_DIM_NUM", "ERROR_INVALID_SINGLE_OPERATION_PARAM",
      "ERROR_GRAPH_NODE_RESHAPE_FUNC_FAIL", "ERROR_INVALID_GRAPH_NODE_CHUNK",
      "ERROR_INVALID_CONTEXT_ADDR", "ERROR_INVALID_STREAM", "ERROR_INVALID_WORKSPACE_SIZE",
      "ERROR_INVALID_WORKSPACE_ADDR", "ERROR_INVALID_OPERATION_ADDR", "ERROR_HCCL_FAIL",
      "ERROR_OUT_OF_DEVICE_MEMORY", "ERROR_OUT_OF_HOST_MEMORY", "ERROR_COMM_EMPTY",
      "ERROR_COPY_HOST_MEMORY_FAIL"};
  const int count = static_cast<int>(sizeof(names) / sizeof(names[0]));
  const std::string code = std::to_string(status);
  return status >= 0 && status < count ? code + " " + names[status] : code;
}

// What the runtime wrote about a failure, or where it did.
inline std::string LogText() {
  const std::string log = gdsl_runtime_log();
  return log.empty() ? "\n  hint: ATB writes the reason to ~/ascend/log/atb" : ": " + log;
}

inline void CheckAcl(aclError code, const std::string& what) {
  if (code != 0) {
    throw Error(what + " failed with ACL error " + std::to_string(code) + LogText());
  }
}

inline void CheckAtb(atb::Status status, const std::string& what) {
  if (status != atb::NO_ERROR) {
    throw Error(what + " failed with ATB error " + StatusText(status) + LogText());
  }
}

}  // namespace gdsl
