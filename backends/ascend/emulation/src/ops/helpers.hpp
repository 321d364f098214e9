// What the operations share: sizes of descs, typed data, sentences about shapes.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include "../math/number.hpp"
#include "../operation.hpp"

namespace emulation {

using std::to_string;

inline int64_t dim(const TensorDesc& desc, uint64_t index) { return desc.shape.dims[index]; }
inline uint64_t rank(const TensorDesc& desc) { return desc.shape.dimNum; }
inline int64_t last(const TensorDesc& desc) { return dim(desc, rank(desc) - 1); }
// The product of dims [from, to).
inline int64_t product(const TensorDesc& desc, uint64_t from, uint64_t to) {
  int64_t n = 1;
  for (uint64_t i = from; i < to; ++i) n *= dim(desc, i);
  return n;
}
inline int64_t numel(const TensorDesc& desc) { return product(desc, 0, rank(desc)); }
// All dims but the last, as one.
inline int64_t rows_of(const TensorDesc& desc) { return product(desc, 0, rank(desc) - 1); }

inline TensorDesc shaped(const TensorDesc& like, std::initializer_list<int64_t> dims) {
  TensorDesc made = like;
  made.shape = {};
  for (int64_t size : dims) made.shape.dims[made.shape.dimNum++] = size;
  return made;
}
inline bool is(const TensorDesc& desc, std::initializer_list<int64_t> dims) {
  uint64_t i = 0;
  if (rank(desc) != dims.size()) return false;
  for (int64_t size : dims)
    if (dim(desc, i++) != size) return false;
  return true;
}
inline bool same_shape(const TensorDesc& a, const TensorDesc& b) {
  bool same = rank(a) == rank(b);
  for (uint64_t i = 0; same && i < rank(a); ++i) same = dim(a, i) == dim(b, i);
  return same;
}

// "name is f16[2, 3], wanted ..."
inline Status bad_shape(Status code, const std::string& name, const TensorDesc& found,
                        const std::string& wanted) {
  return fail(code, name + " is " + text(found) + ", wanted " + wanted);
}
inline Status bad_dim(const std::string& name, const TensorDesc& found, const std::string& wanted) {
  return bad_shape(atb::ERROR_INVALID_TENSOR_DIM, name, found, wanted);
}
inline Status bad_rank(const std::string& name, const TensorDesc& found,
                       const std::string& wanted) {
  return bad_shape(atb::ERROR_INVALID_TENSOR_DIM_NUM, name, found, wanted);
}
inline Status bad_param(const std::string& sentence) {
  return fail(atb::ERROR_INVALID_PARAM, sentence);
}

template <class T> const T* data_in(const atb::VariantPack& pack, size_t index) {
  return static_cast<const T*>(pack.inTensors[index].deviceData);
}
template <class T> T* data_out(const atb::VariantPack& pack, size_t index) {
  return static_cast<T*>(pack.outTensors[index].deviceData);
}
inline const TensorDesc& desc_in(const atb::VariantPack& pack, size_t index) {
  return pack.inTensors[index].desc;
}
inline const TensorDesc& desc_out(const atb::VariantPack& pack, size_t index) {
  return pack.outTensors[index].desc;
}

// Calls f with a number of the dtype, which is a floating one by the tables.
template <class F> void with_type(aclDataType dtype, F f) {
  if (dtype == ACL_FLOAT16) return f(half{});
  if (dtype == ACL_BF16) return f(bfloat{});
  f(float{});
}

// A tensor of a floating dtype as floats; nothing is copied where it has them already.
class Floats {
 public:
  Floats(const void* data, aclDataType dtype, int64_t n) {
    if (dtype == ACL_FLOAT) {
      values_ = static_cast<const float*>(data);
      return;
    }
    made_.reset(new float[static_cast<size_t>(n)]);
    values_ = made_.get();
    with_type(dtype, [&](auto type) {
      widen(static_cast<const decltype(type)*>(data), made_.get(), n);
    });
  }
  explicit Floats(const atb::Tensor& tensor)
      : Floats(tensor.deviceData, tensor.desc.dtype, numel(tensor.desc)) {}
  const float* get() const { return values_; }

 private:
  const float* values_ = nullptr;
  std::unique_ptr<float[]> made_;
};

// Floats that become a tensor, each rounded once, when they are stored.
class Rounded {
 public:
  explicit Rounded(const atb::Tensor& tensor)
      : tensor_(tensor), values_(new float[static_cast<size_t>(numel(tensor.desc))]()) {}
  float* get() const { return values_.get(); }
  void Store() const {
    with_type(tensor_.desc.dtype, [&](auto type) {
      narrow(values_.get(), static_cast<decltype(type)*>(tensor_.deviceData),
             numel(tensor_.desc));
    });
  }

 private:
  const atb::Tensor& tensor_;
  std::unique_ptr<float[]> values_;
};

// Elements [first, first + n) of a tensor in f16 or bf16.
inline void widen_from(const atb::Tensor& tensor, int64_t first, int64_t n, float* to) {
  if (tensor.desc.dtype == ACL_BF16)
    return widen(static_cast<const bfloat*>(tensor.deviceData) + first, to, n);
  widen(static_cast<const half*>(tensor.deviceData) + first, to, n);
}

}  // namespace emulation
