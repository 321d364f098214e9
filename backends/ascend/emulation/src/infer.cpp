// Sizes of tensors.
#include "infer.hpp"
#include "atb/utils.h"

namespace emulation {

uint64_t size_of(aclDataType dtype) {
  switch (dtype) {
    case ACL_INT8:
    case ACL_UINT8:
    case ACL_BOOL: return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16: return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32: return 4;
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_DOUBLE: return 8;
    case ACL_DT_UNDEFINED: return 0;
  }
  return 0;
}

int64_t fractal(aclDataType dtype) { return size_of(dtype) == 1 ? 32 : 16; }

namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

uint64_t elements(const atb::TensorDesc& desc) {
  const uint64_t rank = std::min(desc.shape.dimNum, atb::MAX_DIM);
  const bool logical = desc.format == ACL_FORMAT_FRACTAL_NZ && rank <= 3;
  uint64_t product = rank == 0 ? 0 : 1;
  for (uint64_t i = 0; i < rank; ++i) {
    int64_t size = desc.shape.dims[i];
    if (logical && i + 2 == rank) size = round_up(size, 16);
    if (logical && i + 1 == rank) size = round_up(size, fractal(desc.dtype));
    if (size <= 0) return 0;
    if (__builtin_mul_overflow(product, static_cast<uint64_t>(size), &product)) return UINT64_MAX;
  }
  return product;
}

bool same(const atb::Dims& one, const atb::Dims& other) {
  if (one.dimNum != other.dimNum) return false;
  for (uint64_t i = 0; i < one.dimNum && i < atb::MAX_DIM; ++i)
    if (one.dims[i] != other.dims[i]) return false;
  return true;
}

bool same(const atb::TensorDesc& one, const atb::TensorDesc& other) {
  return one.dtype == other.dtype && one.format == other.format && same(one.shape, other.shape);
}

}  // namespace emulation

namespace atb {

std::string Utils::GetAtbVersion() { return "emulation"; }

uint64_t Utils::GetTensorNumel(const TensorDesc& tensorDesc) {
  return emulation::elements(tensorDesc);
}

uint64_t Utils::GetTensorNumel(const Tensor& tensor) { return GetTensorNumel(tensor.desc); }

uint64_t Utils::GetTensorSize(const TensorDesc& tensorDesc) {
  uint64_t bytes = 0;
  return __builtin_mul_overflow(emulation::elements(tensorDesc),
                                emulation::size_of(tensorDesc.dtype), &bytes)
             ? UINT64_MAX
             : bytes;
}

uint64_t Utils::GetTensorSize(const Tensor& tensor) { return GetTensorSize(tensor.desc); }

}  // namespace atb
