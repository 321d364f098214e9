// Operations that move elements: Transpose, Slice, Transdata.
#include <algorithm>
#include <cstring>
#include "../math/matrix.hpp"
#include "helpers.hpp"

namespace emulation::arrange {

namespace {

using atb::infer::SliceParam;
using atb::infer::TransdataParam;
using atb::infer::TransposeParam;

// Bytes of elements that lie in a tensor by its own steps, in the order of a result's dims.
struct Walk {
  int64_t start = 0, steps[atb::MAX_DIM] = {};

  void Copy(const TensorDesc& result, const char* from, char* to) const {
    const auto bytes = aclDataTypeSize(result.dtype);
    for (int64_t i = 0; i < numel(result); ++i) {
      int64_t place = start, rest = i;
      for (uint64_t d = rank(result); d-- > 0; rest /= dim(result, d))
        place += rest % dim(result, d) * steps[d];
      std::memcpy(to + size_t(i) * bytes, from + size_t(place) * bytes, bytes);
    }
  }
};

class Transpose : public SingleOperation {
 public:
  explicit Transpose(const TransposeParam& param)
      : SingleOperation("TransposeOperation", {"Transpose", {{"x"}}, {{"y"}}}), param_(param) {}

  static Status Check(const TransposeParam& param) {
    atb::SVector<int32_t> sorted = param.perm;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size(); ++i)
      if (sorted[i] != int32_t(i))
        return bad_param("perm is no order of 0 to " + to_string(sorted.size() - 1));
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    if (param_.perm.size() != rank(in[0]))
      return bad_rank("x", in[0], to_string(param_.perm.size()) + " dims, as perm has");
    out[0] = in[0];
    for (size_t i = 0; i < param_.perm.size(); ++i)
      out[0].shape.dims[i] = dim(in[0], uint64_t(param_.perm[i]));
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& x = desc_in(pack, 0);
    Walk walk;
    for (size_t i = 0; i < param_.perm.size(); ++i)
      walk.steps[i] = product(x, uint64_t(param_.perm[i]) + 1, rank(x));
    walk.Copy(desc_out(pack, 0), data_in<char>(pack, 0), data_out<char>(pack, 0));
    return atb::NO_ERROR;
  }

 private:
  TransposeParam param_;
};

class Slice : public SingleOperation {
 public:
  explicit Slice(const SliceParam& param)
      : SingleOperation("SliceOperation", {"Slice", {{"x"}}, {{"y"}}}), param_(param) {}

  static Status Check(const SliceParam& param) {
    if (param.offsets.size() != param.size.size())
      return bad_param("offsets has " + to_string(param.offsets.size()) + " values and size " +
                       to_string(param.size.size()));
    return atb::NO_ERROR;
  }

 protected:
  // A negative offset counts from the end; a size of -1 is all that is left.
  Status Infer(const Descs& in, Descs& out) const override {
    if (param_.offsets.size() != rank(in[0]))
      return bad_rank("x", in[0], to_string(param_.offsets.size()) + " dims, as offsets has");
    out[0] = in[0];
    for (size_t i = 0; i < param_.offsets.size(); ++i) {
      const int64_t whole = dim(in[0], i), start = Start(in[0], i);
      const int64_t size = param_.size[i] == -1 ? whole - start : param_.size[i];
      if (start < 0 || size < 1 || size > whole - start)
        return bad_dim("x", in[0], "more in dim " + to_string(i) + " than offsets " +
                       to_string(param_.offsets[i]) + " and size " + to_string(param_.size[i]));
      out[0].shape.dims[i] = size;
    }
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& x = desc_in(pack, 0);
    Walk walk;
    for (uint64_t i = 0; i < rank(x); ++i) {
      walk.steps[i] = product(x, i + 1, rank(x));
      walk.start += Start(x, i) * walk.steps[i];
    }
    walk.Copy(desc_out(pack, 0), data_in<char>(pack, 0), data_out<char>(pack, 0));
    return atb::NO_ERROR;
  }

 private:
  int64_t Start(const TensorDesc& x, uint64_t i) const {
    const int64_t offset = param_.offsets[i];
    return offset < 0 ? offset + dim(x, i) : offset;
  }

  SliceParam param_;
};

// Matrices of ND [rows, columns] or [batch, rows, columns], and NZ [batch, columns / 16, rows, 16].
class Transdata : public SingleOperation {
 public:
  explicit Transdata(const TransdataParam& param)
      : SingleOperation("TransdataOperation",
                        {ToNz(param) ? "ToNz" : "ToNd", {{"x"}}, {{"y"}}}),
        param_(param) {}

  static Status Check(const TransdataParam& param) {
    if (param.transdataType == TransdataParam::UNDEFINED)
      return bad_param("transdataType is UNDEFINED");
    if (param.outCrops.size() != 2)
      return bad_param("outCrops has " + to_string(param.outCrops.size()) + " sizes, wanted 2");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc& x = in[0];
    if (ToNz(param_)) {
      if (rank(x) != 2 && rank(x) != 3) return bad_rank("x", x, "2 or 3 dims");
      const int64_t rows = dim(x, rank(x) - 2), batch = rank(x) == 3 ? dim(x, 0) : 1;
      out[0] = shaped(x, {batch, chunks(last(x)), 16 * chunks(rows), 16});
      out[0].format = ACL_FORMAT_FRACTAL_NZ;
      return atb::NO_ERROR;
    }
    if (rank(x) != 4 || last(x) != 16) return bad_rank("x", x, "[batch, columns / 16, rows, 16]");
    const int64_t rows = param_.outCrops[0], columns = param_.outCrops[1];
    if (rows < 1 || columns < 1 || 16 * chunks(rows) != dim(x, 2) || chunks(columns) != dim(x, 1))
      return bad_dim("x", x, "NZ of outCrops " + to_string(rows) + " rows and " +
                     to_string(columns) + " columns");
    out[0] = shaped(x, {dim(x, 0), rows, columns});
    out[0].format = ACL_FORMAT_ND;
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& nd = ToNz(param_) ? desc_in(pack, 0) : desc_out(pack, 0);
    const TensorDesc& nz = ToNz(param_) ? desc_out(pack, 0) : desc_in(pack, 0);
    const int64_t rows = dim(nd, rank(nd) - 2), columns = last(nd), batch = dim(nz, 0);
    const int64_t whole = rows * columns, padded = numel(nz) / batch;
    const auto* from = data_in<uint16_t>(pack, 0);
    auto* to = data_out<uint16_t>(pack, 0);
    if (ToNz(param_)) std::fill_n(to, numel(nz), uint16_t{0});
    for (int64_t b = 0; b < batch; ++b) {
      if (ToNz(param_))
        copy(plain(from + b * whole, rows, columns), fractal(to + b * padded, rows, columns));
      else
        copy(fractal(from + b * padded, rows, columns), plain(to + b * whole, rows, columns));
    }
    return atb::NO_ERROR;
  }

 private:
  static bool ToNz(const TransdataParam& param) {
    return param.transdataType == TransdataParam::ND_TO_FRACTAL_NZ;
  }

  TransdataParam param_;
};

}  // namespace

}  // namespace emulation::arrange

template <>
atb::Status atb::CreateOperation(const atb::infer::TransposeParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::arrange::Transpose>("TransposeOperation", param, operation);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::SliceParam& param, atb::Operation** operation) {
  return emulation::create<emulation::arrange::Slice>("SliceOperation", param, operation);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::TransdataParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::arrange::Transdata>("TransdataOperation", param, operation);
}
