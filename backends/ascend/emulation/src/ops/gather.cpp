// Gather: rows of a table, by their numbers.
#include <cstring>
#include "helpers.hpp"

namespace emulation::gather {

namespace {

using Param = atb::infer::GatherParam;

class Gather : public SingleOperation {
 public:
  explicit Gather(const Param& param)
      : SingleOperation("GatherOperation", {"Gather", {{"table"}, {"indices"}}, {{"y"}}}),
        param_(param) {}

  static Status Check(const Param& param) {
    if (param.batchDims < 0 || param.batchDims > param.axis)
      return bad_param("batchDims is " + to_string(param.batchDims) + ", wanted 0 to axis " +
                       to_string(param.axis));
    return atb::NO_ERROR;
  }

 protected:
  // [before axis] + [indices after batchDims] + [after axis]
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc &table = in[0], &indices = in[1];
    const auto axis = uint64_t(param_.axis), batch = uint64_t(param_.batchDims);
    if (axis >= rank(table))
      return bad_param("axis is " + to_string(axis) + ", table is " + text(table));
    if (batch > rank(indices))
      return bad_param("batchDims is " + to_string(batch) + ", indices is " + text(indices));
    for (uint64_t i = 0; i < batch; ++i)
      if (dim(indices, i) != dim(table, i))
        return bad_dim("indices", indices, "the first dims of table " + text(table));
    if (rank(table) - 1 + rank(indices) - batch > atb::MAX_DIM)
      return bad_rank("indices", indices, "a result of at most 8 dims");
    out[0] = table;
    out[0].shape = {};
    const auto append = [&](const TensorDesc& from, uint64_t first, uint64_t end) {
      for (uint64_t i = first; i < end; ++i)
        out[0].shape.dims[out[0].shape.dimNum++] = dim(from, i);
    };
    append(table, 0, axis);
    append(indices, batch, rank(indices));
    append(table, axis + 1, rank(table));
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    return desc_in(pack, 1).dtype == ACL_INT64 ? Take<int64_t>(pack) : Take<int32_t>(pack);
  }

 private:
  template <class Index> Status Take(const atb::VariantPack& pack) const {
    const TensorDesc &table = desc_in(pack, 0), &indices = desc_in(pack, 1);
    const auto axis = uint64_t(param_.axis), batch = uint64_t(param_.batchDims);
    const int64_t batches = product(table, 0, batch), outer = product(table, batch, axis);
    const int64_t picked = product(indices, batch, rank(indices)), limit = dim(table, axis);
    const int64_t bytes = product(table, axis + 1, rank(table)) *
                          int64_t(aclDataTypeSize(table.dtype));
    const auto* index = data_in<Index>(pack, 1);
    for (int64_t i = 0; i < numel(indices); ++i)
      if (index[i] < 0 || index[i] >= limit)
        return bad_param("indices[" + to_string(i) + "] is " + to_string(index[i]) +
                         ", the table " + text(table) + " has " + to_string(limit));
    char* to = data_out<char>(pack, 0);
    for (int64_t part = 0; part < batches * outer; ++part)
      for (int64_t i = 0; i < picked; ++i, to += bytes) {
        const int64_t row = part * limit + index[part / outer * picked + i];
        std::memcpy(to, data_in<char>(pack, 0) + row * bytes, size_t(bytes));
      }
    return atb::NO_ERROR;
  }

  Param param_;
};

}  // namespace

}  // namespace emulation::gather

template <>
atb::Status atb::CreateOperation(const atb::infer::GatherParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::gather::Gather>("GatherOperation", param, operation);
}
