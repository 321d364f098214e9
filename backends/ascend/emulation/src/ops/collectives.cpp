// Sums over ranks: of a tensor, and of what a linear makes.
#include "../exchange.hpp"
#include "../math/matmul.hpp"
#include "helpers.hpp"

namespace emulation::collectives {

namespace {

template <class Param> Status check_ranks(const Param& param) {
  if (param.rank < 0 || param.rank >= param.rankSize)
    return bad_param("rank is " + to_string(param.rank) + " and rankSize is " +
                     to_string(param.rankSize) + ", wanted a rank below it");
  if (param.backend != "hccl" && param.backend != "lccl")
    return bad_param("backend is " + param.backend + "; wanted hccl or lccl");
  return atb::NO_ERROR;
}

class AllReduce : public SingleOperation {
 public:
  using Param = atb::infer::AllReduceParam;
  explicit AllReduce(const Param&)
      : SingleOperation("AllReduceOperation", {"AllReduce", {{"x"}}, {{"y"}}}) {}

  static Status Check(const Param& param) {
    if (param.allReduceType != "sum")
      return bad_param("allReduceType is " + param.allReduceType + "; the emulation adds up");
    return check_ranks(param);
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    out[0] = in[0];
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    return all_reduce(desc_in(pack, 0).dtype, pack.inTensors[0].deviceData,
                      pack.outTensors[0].deviceData, numel(desc_in(pack, 0)));
  }
};

class LinearParallel : public SingleOperation {
 public:
  using Param = atb::infer::LinearParallelParam;
  explicit LinearParallel(const Param& param)
      : SingleOperation("LinearParallelOperation", {"LinearParallel", {{"x"}, {"weight"}}, {{"y"}}}),
        param_(param) {}

  static Status Check(const Param& param) {
    if (param.type != Param::LINEAR_ALL_REDUCE)
      return bad_param("type is another than LINEAR_ALL_REDUCE, which the emulation computes");
    if (param.hasResidual) return bad_param("hasResidual is true; the emulation adds none");
    const Status status = check_ranks(param);
    if (status != atb::NO_ERROR) return status;
    if ((param.rankSize & (param.rankSize - 1)) != 0)
      return bad_param("rankSize is " + to_string(param.rankSize) + ", wanted a power of 2");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const uint64_t n = rank(in[0]);
    if (n != 2 && n != 3) return bad_rank("x", in[0], "2 or 3 dims");
    if (rank(in[1]) != 2) return bad_rank("weight", in[1], "2 dims");
    const int64_t depth = last(in[0]);
    if (dim(in[1], param_.transWeight ? 1 : 0) != depth)
      return bad_dim("weight", in[1], to_string(depth) + " as its depth, as x " + text(in[0]) +
                     " has (transWeight is " + (param_.transWeight ? "true)" : "false)"));
    out[0] = in[0];
    out[0].shape.dims[n - 1] = dim(in[1], param_.transWeight ? 0 : 1);
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& y = desc_out(pack, 0);
    with_type(desc_in(pack, 1).dtype, [&](auto type) {
      using T = decltype(type);
      const int64_t columns = last(y), depth = last(desc_in(pack, 0));
      const Floats x(pack.inTensors[0]);
      const auto weight = plain(data_in<T>(pack, 1), dim(desc_in(pack, 1), 0),
                                dim(desc_in(pack, 1), 1));
      T* made = data_out<T>(pack, 0);
      const MatmulArgs<T> args{x.get(), weight, param_.transWeight, rows_of(y), columns, depth};
      matmul(args, [&](int64_t row, int64_t column, float* sums, int64_t count) {
        narrow(sums, made + row * columns + column, count);
      });
    });
    void* sum = pack.outTensors[0].deviceData;
    return all_reduce(y.dtype, sum, sum, numel(y));
  }

 private:
  Param param_;
};

}  // namespace

}  // namespace emulation::collectives

template <>
atb::Status atb::CreateOperation(const atb::infer::AllReduceParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::collectives::AllReduce>("AllReduceOperation", param,
                                                              operation);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::LinearParallelParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::collectives::LinearParallel>("LinearParallelOperation", param,
                                                                   operation);
}
