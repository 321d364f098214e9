#include "log.hpp"
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulation {

namespace {

thread_local std::string sentence_of_last_failure;

bool printed() {
  const char* value = std::getenv("ATB_LOG_TO_STDOUT");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace

atb::Status fail(atb::Status code, const std::string& sentence) {
  sentence_of_last_failure = sentence;
  if (printed()) std::printf("[ATB emulation] error %d: %s\n", code, sentence.c_str());
  return code;
}

atb::Status within(const std::string& where, atb::Status code) {
  if (code != atb::NO_ERROR) sentence_of_last_failure = where + sentence_of_last_failure;
  return code;
}

std::string name_of(aclDataType dtype) {
  switch (dtype) {
    case ACL_FLOAT: return "f32";
    case ACL_FLOAT16: return "f16";
    case ACL_BF16: return "bf16";
    case ACL_DOUBLE: return "f64";
    case ACL_INT8: return "i8";
    case ACL_INT16: return "i16";
    case ACL_INT32: return "i32";
    case ACL_INT64: return "i64";
    case ACL_UINT8: return "u8";
    case ACL_UINT16: return "u16";
    case ACL_UINT32: return "u32";
    case ACL_UINT64: return "u64";
    case ACL_BOOL: return "bool";
    case ACL_DT_UNDEFINED: return "undefined dtype";
  }
  return "dtype " + std::to_string(static_cast<int>(dtype));
}

std::string name_of(aclFormat format) {
  switch (format) {
    case ACL_FORMAT_ND: return "nd";
    case ACL_FORMAT_FRACTAL_NZ: return "nz";
    case ACL_FORMAT_NCHW: return "nchw";
    case ACL_FORMAT_UNDEFINED: return "undefined format";
  }
  return "format " + std::to_string(static_cast<int>(format));
}

std::string text(const atb::Dims& shape) {
  std::string made = "[";
  for (uint64_t i = 0; i < shape.dimNum && i < atb::MAX_DIM; ++i)
    made += (i == 0 ? "" : ", ") + std::to_string(shape.dims[i]);
  return made + "]";
}

std::string text(const atb::TensorDesc& desc) {
  const std::string made = name_of(desc.dtype) + text(desc.shape);
  return desc.format == ACL_FORMAT_ND ? made : made + " " + name_of(desc.format);
}

}  // namespace emulation

extern "C" __attribute__((visibility("default"))) const char* atb_emulation_last_error() {
  return emulation::sentence_of_last_failure.c_str();
}
