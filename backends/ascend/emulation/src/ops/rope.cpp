// Rotary positions of q and k, with cos and sin of every row given.
#include <vector>
#include "helpers.hpp"

namespace emulation::rope {

namespace {

using Param = atb::infer::RopeParam;

// Rotates every `width` of a row: x = x cos + turned(x) sin, where the two halves of every block of
// 2 width / coeff are turned: one block for 2, two for 4, pairs where coeff is the width.
struct Rotation {
  int64_t width, coeff;

  void operator()(const float* x, const float* cos, const float* sin, float* y) const {
    const int64_t half = width / coeff;
    for (int64_t first = 0; first < width; first += 2 * half)
      for (int64_t i = first; i < first + half; ++i) {
        y[i] = x[i] * cos[i] - x[i + half] * sin[i];
        y[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
      }
  }
};

Status check_rotated(const char* name, const TensorDesc& x, int64_t width) {
  if (rank(x) != 2 && rank(x) != 4) return bad_dim(name, x, "2 dims [tokens, hidden] or 4");
  const int64_t hidden = rank(x) == 2 ? last(x) : product(x, 2, 4);
  if (hidden % width != 0)
    return bad_dim(name, x, "a hidden size that is a multiple of the width of cos, " +
                   to_string(width));
  return atb::NO_ERROR;
}

class Rope : public SingleOperation {
 public:
  explicit Rope(const Param& param)
      : SingleOperation("RopeOperation",
                        {"Rope",
                         {{"query"}, {"key"}, {"cos"}, {"sin"}, {"seqLen"}},
                         {{"queryOut", {0}}, {"keyOut", {1}}}}),
        coeff_(param.rotaryCoeff) {}

  static Status Check(const Param& param) {
    if (param.rotaryCoeff <= 0 || param.rotaryCoeff % 2 != 0)
      return bad_param("rotaryCoeff is " + to_string(param.rotaryCoeff) +
                       ", wanted 2, 4 or the width of cos");
    if (param.cosFormat != 0)
      return bad_param("cosFormat is " + to_string(param.cosFormat) + ", wanted 0");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc &q = in[0], &k = in[1], &cos = in[2];
    if (rank(cos) != 2) return bad_dim("cos", cos, "2 dims [tokens, width]");
    const int64_t width = last(cos);
    if (width < 16 || width > 4096 || width % 4 != 0)
      return bad_dim("cos", cos, "a width of 16 to 4096, a multiple of 4");
    if (coeff_ != 2 && coeff_ != 4 && coeff_ != width)
      return fail(atb::ERROR_INVALID_TENSOR_DIM, "rotaryCoeff is " + to_string(coeff_) +
                  ", wanted 2, 4 or the width of cos, " + to_string(width));
    Status status = check_rotated("query", q, width);
    if (status == atb::NO_ERROR) status = check_rotated("key", k, width);
    if (status != atb::NO_ERROR) return status;
    const int64_t rows = Rows(q), hidden_q = numel(q) / rows, hidden_k = numel(k) / Rows(k);
    if (Rows(k) != rows) return bad_dim("key", k, "as many rows as query " + text(q));
    if (hidden_q % hidden_k != 0)
      return bad_dim("query", q, "a hidden size that is a multiple of key's, " +
                     to_string(hidden_k));
    if (dim(cos, 0) != rows) return bad_dim("cos", cos, to_string(rows) + " rows, as query has");
    if (!same_shape(in[3], cos)) return bad_dim("sin", in[3], "the shape of cos " + text(cos));
    if (rank(in[4]) != 1) return bad_dim("seqLen", in[4], "1 dim [sequences]");
    out[0] = q;
    out[1] = k;
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const Floats cos(pack.inTensors[2]), sin(pack.inTensors[3]);
    for (size_t i = 0; i < 2; ++i)
      with_type(desc_in(pack, i).dtype, [&](auto type) {
        using T = decltype(type);
        Rotate(desc_in(pack, i), data_in<T>(pack, i), last(desc_in(pack, 2)), cos.get(), sin.get(),
               data_out<T>(pack, i));
      });
    return atb::NO_ERROR;
  }

 private:
  static int64_t Rows(const TensorDesc& x) {
    return rank(x) == 2 ? dim(x, 0) : dim(x, 0) * dim(x, 1);
  }

  template <class T>
  void Rotate(const TensorDesc& desc, const T* x, int64_t width, const float* cos,
              const float* sin, T* y) const {
    const Rotation rotation{width, coeff_};
    const int64_t rows = Rows(desc), hidden = numel(desc) / rows;
    std::vector<float> from(static_cast<size_t>(width)), to(from.size());
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t first = 0; first < hidden; first += width) {
        widen(x + row * hidden + first, from.data(), width);
        rotation(from.data(), cos + row * width, sin + row * width, to.data());
        narrow(to.data(), y + row * hidden + first, width);
      }
  }

  int64_t coeff_;
};

}  // namespace

}  // namespace emulation::rope

template <>
atb::Status atb::CreateOperation(const atb::infer::RopeParam& param, atb::Operation** operation) {
  return emulation::create<emulation::rope::Rope>("RopeOperation", param, operation);
}
