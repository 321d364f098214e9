// Split into 2 or 3 parts, and Concat of 2.
#include <cstring>
#include "helpers.hpp"

namespace emulation::split_concat {

namespace {

using atb::infer::ConcatParam;
using atb::infer::SplitParam;

// A tensor around an axis: `outer` times `inner` bytes.
struct Around {
  int64_t outer, inner;

  Around(const TensorDesc& desc, uint64_t axis)
      : outer(product(desc, 0, axis)),
        inner(product(desc, axis, rank(desc)) * int64_t(aclDataTypeSize(desc.dtype))) {}
};

// Copies a part of every row of a whole, or back.
void copy_rows(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t bytes,
               int64_t rows) {
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(to + row * to_step, from + row * from_step, size_t(bytes));
}

Status check_axis(const char* name, int64_t axis, const TensorDesc& x, uint64_t& found) {
  const auto dims = int64_t(rank(x));
  if (axis < -dims || axis >= dims)
    return bad_param(std::string(name) + " is " + to_string(axis) + ", x is " + text(x));
  found = uint64_t(axis < 0 ? axis + dims : axis);
  return atb::NO_ERROR;
}

Signature signature_of(const SplitParam& param) {
  if (param.splitNum == 2) return {"Split2", {{"x"}}, {{"y0"}, {"y1"}}};
  return {"Split3", {{"x"}}, {{"y0"}, {"y1"}, {"y2"}}};
}

class Split : public SingleOperation {
 public:
  explicit Split(const SplitParam& param)
      : SingleOperation("SplitOperation", signature_of(param)), param_(param) {}

  static Status Check(const SplitParam& param) {
    if (param.splitNum != 2 && param.splitNum != 3)
      return bad_param("splitNum is " + to_string(param.splitNum) + ", wanted 2 or 3");
    if (param.splitSizes.empty()) return atb::NO_ERROR;
    if (param.splitDim < 0)
      return bad_param("splitDim is " + to_string(param.splitDim) +
                       ", wanted 0 or more where splitSizes are given");
    if (int64_t(param.splitSizes.size()) != param.splitNum)
      return bad_param("splitSizes has " + to_string(param.splitSizes.size()) +
                       " sizes and splitNum is " + to_string(param.splitNum));
    for (int32_t size : param.splitSizes)
      if (size <= 0) return bad_param("splitSizes has " + to_string(size) + ", wanted 1 or more");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    uint64_t axis = 0;
    const Status status = check_axis("splitDim", param_.splitDim, in[0], axis);
    if (status != atb::NO_ERROR) return status;
    const int64_t whole = dim(in[0], axis);
    int64_t sum = 0;
    for (int32_t size : param_.splitSizes) sum += size;
    if (param_.splitSizes.empty() && whole % param_.splitNum != 0)
      return bad_dim("x", in[0], "a size in dim " + to_string(axis) + " that " +
                     to_string(param_.splitNum) + " divides");
    if (!param_.splitSizes.empty() && sum != whole)
      return bad_dim("x", in[0], to_string(sum) + " in dim " + to_string(axis) +
                     ", the sum of splitSizes");
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = in[0];
      out[i].shape.dims[axis] =
          param_.splitSizes.empty() ? whole / param_.splitNum : param_.splitSizes[i];
    }
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    uint64_t axis = 0;
    check_axis("splitDim", param_.splitDim, desc_in(pack, 0), axis);
    const Around whole(desc_in(pack, 0), axis);
    const char* from = data_in<char>(pack, 0);
    for (size_t i = 0; i < pack.outTensors.size(); ++i) {
      const Around part(desc_out(pack, i), axis);
      copy_rows(from, whole.inner, data_out<char>(pack, i), part.inner, part.inner, whole.outer);
      from += part.inner;
    }
    return atb::NO_ERROR;
  }

 private:
  SplitParam param_;
};

class Concat : public SingleOperation {
 public:
  explicit Concat(const ConcatParam& param)
      : SingleOperation("ConcatOperation", {"Concat", {{"x0"}, {"x1"}}, {{"y"}}}), param_(param) {}

  static Status Check(const ConcatParam&) { return atb::NO_ERROR; }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    uint64_t axis = 0;
    const Status status = check_axis("concatDim", param_.concatDim, in[0], axis);
    if (status != atb::NO_ERROR) return status;
    out[0] = in[0];
    out[0].shape.dims[axis] += rank(in[1]) > axis ? dim(in[1], axis) : 0;
    TensorDesc wanted = in[0];
    wanted.shape.dims[axis] = in[1].shape.dims[axis];
    if (same_shape(wanted, in[1])) return atb::NO_ERROR;
    return bad_dim("x1", in[1], "the shape of x0 " + text(in[0]) + " but for dim " +
                   to_string(axis));
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    uint64_t axis = 0;
    check_axis("concatDim", param_.concatDim, desc_in(pack, 0), axis);
    const Around whole(desc_out(pack, 0), axis);
    char* to = data_out<char>(pack, 0);
    for (size_t i = 0; i < 2; ++i) {
      const Around part(desc_in(pack, i), axis);
      copy_rows(data_in<char>(pack, i), part.inner, to, whole.inner, part.inner, whole.outer);
      to += part.inner;
    }
    return atb::NO_ERROR;
  }

 private:
  ConcatParam param_;
};

}  // namespace

}  // namespace emulation::split_concat

template <>
atb::Status atb::CreateOperation(const atb::infer::SplitParam& param, atb::Operation** operation) {
  return emulation::create<emulation::split_concat::Split>("SplitOperation", param, operation);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::ConcatParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::split_concat::Concat>("ConcatOperation", param, operation);
}
