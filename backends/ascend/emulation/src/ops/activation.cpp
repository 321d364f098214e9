// Activations of one tensor; SWIGLU_FORWARD takes two halves of it.
#include <algorithm>
#include <cmath>
#include "helpers.hpp"

namespace emulation::activation {

namespace {

using Param = atb::infer::ActivationParam;
using atb::infer::ActivationType;

const char* table_of(ActivationType type) {
  switch (type) {
    case atb::infer::ACTIVATION_RELU: return "Relu";
    case atb::infer::ACTIVATION_GELU: return "Gelu";
    case atb::infer::ACTIVATION_FAST_GELU: return "FastGelu";
    case atb::infer::ACTIVATION_SWISH: return "Swish";
    case atb::infer::ACTIVATION_SWIGLU_FORWARD: return "Swiglu";
    default: return nullptr;
  }
}

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

float gelu(float x, bool by_tanh) {
  if (!by_tanh) return x * 0.5f * (1 + std::erf(x * 0.70710678f));
  return x * 0.5f * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
}

class Activation : public SingleOperation {
 public:
  explicit Activation(const Param& param)
      : SingleOperation("ActivationOperation",
                        {table_of(param.activationType), {{"x"}}, {Out(param)}}),
        param_(param) {}

  static Status Check(const Param& param) {
    if (table_of(param.activationType) == nullptr)
      return bad_param("activationType is " + to_string(int(param.activationType)) +
                       "; the emulation has RELU, GELU, FAST_GELU, SWISH and SWIGLU_FORWARD");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    out[0] = in[0];
    if (!Halves()) return atb::NO_ERROR;
    const auto dims = int64_t(rank(in[0]));
    if (param_.dim < -dims || param_.dim >= dims)
      return bad_param("dim is " + to_string(param_.dim) + ", x is " + text(in[0]));
    const uint64_t axis = Axis(in[0]);
    if (dim(in[0], axis) % 2 != 0)
      return bad_dim("x", in[0], "an even size in dim " + to_string(axis) + ", which is halved");
    out[0].shape.dims[axis] /= 2;
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const Floats x(pack.inTensors[0]);
    const Rounded y(pack.outTensors[0]);
    if (Halves())
      Gate(desc_in(pack, 0), x.get(), y.get());
    else
      for (int64_t i = 0; i < numel(desc_in(pack, 0)); ++i) y.get()[i] = Value(x.get()[i]);
    y.Store();
    return atb::NO_ERROR;
  }

 private:
  static Output Out(const Param& param) {
    if (param.activationType == atb::infer::ACTIVATION_SWIGLU_FORWARD) return {"y"};
    return {"y", {0}};
  }
  bool Halves() const { return param_.activationType == atb::infer::ACTIVATION_SWIGLU_FORWARD; }
  uint64_t Axis(const TensorDesc& x) const {
    return uint64_t(param_.dim < 0 ? int64_t(rank(x)) + param_.dim : param_.dim);
  }

  float Value(float x) const {
    switch (param_.activationType) {
      case atb::infer::ACTIVATION_RELU: return std::max(x, 0.f);
      case atb::infer::ACTIVATION_GELU: return gelu(x, param_.geluMode == Param::TANH_MODE);
      case atb::infer::ACTIVATION_FAST_GELU: return x * sigmoid(1.702f * x);
      default: return x * sigmoid(param_.scale * x);  // SWISH
    }
  }

  // silu(first half) * second half
  void Gate(const TensorDesc& desc, const float* x, float* y) const {
    const uint64_t axis = Axis(desc);
    const int64_t outer = product(desc, 0, axis), n = product(desc, axis, rank(desc)) / 2;
#pragma omp parallel for if (outer * n > 100000)
    for (int64_t row = 0; row < outer; ++row) {
      const float *gate = x + row * 2 * n, *up = gate + n;
      for (int64_t i = 0; i < n; ++i) y[row * n + i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
  }

  Param param_;
};

}  // namespace

}  // namespace emulation::activation

template <>
atb::Status atb::CreateOperation(const atb::infer::ActivationParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::activation::Activation>("ActivationOperation", param,
                                                              operation);
}
