// y = x w (+ bias), the weight plain or in 16-wide columns.
#include "../math/matmul.hpp"
#include "helpers.hpp"

namespace emulation::linear {

namespace {

using Param = atb::infer::LinearParam;

Signature signature_of(const Param& param) {
  if (!param.hasBias) return {"Linear", {{"x"}, {"weight"}}, {{"y"}}};
  return {"LinearBias", {{"x"}, {"weight"}, {"bias"}}, {{"y"}}};
}

// The sizes of the logical matrix.
struct Size {
  int64_t rows = 0, columns = 0;
};

// NZ dims are [columns / 16, rows, 16], with 1 before them or not; two dims are the logical ones.
Status weight_size(const TensorDesc& weight, Size& size) {
  const uint64_t n = rank(weight);
  if (weight.format != ACL_FORMAT_FRACTAL_NZ) {
    if (n != 2) return bad_rank("weight", weight, "2 dims");
    size = {dim(weight, 0), dim(weight, 1)};
    return atb::NO_ERROR;
  }
  if (n == 2) {
    size = {dim(weight, 0), dim(weight, 1)};
    if (size.rows % 16 == 0 && size.columns % 16 == 0) return atb::NO_ERROR;
    return bad_dim("weight", weight, "multiples of 16 for NZ with 2 dims");
  }
  if (n != 3 && n != 4) return bad_rank("weight", weight, "2, 3 or 4 dims for NZ");
  if (n == 4 && dim(weight, 0) != 1) return bad_dim("weight", weight, "1 as the first dim of NZ");
  if (last(weight) != 16 || dim(weight, n - 2) % 16 != 0)
    return bad_dim("weight", weight, "[1, columns / 16, rows as a multiple of 16, 16] for NZ");
  size = {dim(weight, n - 2), dim(weight, n - 3) * 16};
  return atb::NO_ERROR;
}

class Linear : public SingleOperation {
 public:
  explicit Linear(const Param& param)
      : SingleOperation("LinearOperation", signature_of(param)), param_(param) {}

  static Status Check(const Param& param) {
    if (param.enAccum) return bad_param("enAccum is true; the emulation does not accumulate");
    if (param.outDataType != ACL_DT_UNDEFINED)
      return bad_param("outDataType is " + name_of(param.outDataType) +
                       ", which asks for int8; wanted ACL_DT_UNDEFINED");
    if (param.matmulType != Param::MATMUL_UNDEFINED)
      return bad_param("matmulType is MATMUL_EIN_SUM; wanted MATMUL_UNDEFINED");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc& x = in[0];
    const uint64_t n = rank(x);
    if (n != 2 && n != 3) return bad_rank("x", x, "2 or 3 dims");
    Size weight;
    const Status status = weight_size(in[1], weight);
    if (status != atb::NO_ERROR) return status;
    const int64_t rows = dim(x, param_.transposeA ? n - 1 : n - 2);
    const int64_t depth = dim(x, param_.transposeA ? n - 2 : n - 1);
    const int64_t columns = param_.transposeB ? weight.rows : weight.columns;
    if (!Fits(in[1], depth, param_.transposeB ? weight.columns : weight.rows))
      return bad_dim("weight", in[1], to_string(depth) + " as its depth, as x " + text(x) +
                     " has (transposeB is " + (param_.transposeB ? "true)" : "false)"));
    if (param_.hasBias && !is(in[2], {columns}) && !is(in[2], {1, columns}))
      return bad_dim("bias", in[2], "[" + to_string(columns) + "] as the weight has columns");
    if (param_.hasBias && in[2].dtype == ACL_FLOAT && in[1].format == ACL_FORMAT_FRACTAL_NZ)
      return fail(atb::ERROR_INVALID_TENSOR_INI_MATCH, "bias is f32, which wants an ND weight");
    out[0] = n == 2 ? shaped(x, {rows, columns}) : shaped(x, {dim(x, 0), rows, columns});
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& x = desc_in(pack, 0);
    if (!param_.transposeA) {
      Multiply(pack, Floats(pack.inTensors[0]).get(), rows_of(x), last(x));
      return atb::NO_ERROR;
    }
    const int64_t rows = last(x), depth = dim(x, rank(x) - 2), batch = numel(x) / rows / depth;
    const Floats from(pack.inTensors[0]);
    const std::unique_ptr<float[]> turned(new float[static_cast<size_t>(numel(x))]);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < depth; ++k)
          turned[static_cast<size_t>((b * rows + i) * depth + k)] =
              from.get()[(b * depth + k) * rows + i];
    Multiply(pack, turned.get(), batch * rows, depth);
    return atb::NO_ERROR;
  }

 private:
  // NZ with its own dims has whole groups of 16.
  static bool Fits(const TensorDesc& weight, int64_t depth, int64_t has) {
    const bool rounded = weight.format == ACL_FORMAT_FRACTAL_NZ && rank(weight) > 2;
    return has == (rounded ? 16 * chunks(depth) : depth);
  }

  void Multiply(const atb::VariantPack& pack, const float* x, int64_t rows, int64_t depth) const {
    with_type(desc_in(pack, 1).dtype, [&](auto type) {
      using T = decltype(type);
      const int64_t columns = last(desc_out(pack, 0));
      const int64_t height = param_.transposeB ? columns : depth;
      const int64_t width = param_.transposeB ? depth : columns;
      const T* data = data_in<T>(pack, 1);
      const auto weight = desc_in(pack, 1).format == ACL_FORMAT_FRACTAL_NZ
                              ? fractal(data, height, width)
                              : plain(data, height, width);
      std::unique_ptr<Floats> bias;
      if (param_.hasBias) bias.reset(new Floats(pack.inTensors[2]));
      T* y = data_out<T>(pack, 0);
      const MatmulArgs<T> args{x, weight, param_.transposeB, rows, columns, depth};
      matmul(args, [&](int64_t row, int64_t column, float* sums, int64_t count) {
        if (bias)
          for (int64_t i = 0; i < count; ++i) sums[i] += bias->get()[column + i];
        narrow(sums, y + row * columns + column, count);
      });
    });
  }

  Param param_;
};

}  // namespace

}  // namespace emulation::linear

template <>
atb::Status atb::CreateOperation(const atb::infer::LinearParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::linear::Linear>("LinearOperation", param, operation);
}
