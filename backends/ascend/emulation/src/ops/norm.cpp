// RmsNorm (alone, or behind the sum of x and a residual) and LayerNorm.
#include <cmath>
#include <vector>
#include "helpers.hpp"

namespace emulation {

namespace {

using atb::infer::LayerNormParam;
using atb::infer::RmsNormParam;

bool pre(const RmsNormParam& param) { return param.layerType == RmsNormParam::RMS_NORM_PRENORM; }

Signature signature_of(const RmsNormParam& param) {
  if (!pre(param)) return {"RmsNorm", {{"x"}, {"gamma"}}, {{"y", {0}}}};
  if (param.preNormParam.hasBias)
    return {"RmsNormPre", {{"x"}, {"bias"}, {"residual"}, {"gamma"}}, {{"y", {0, 2}}, {"sum", {0, 2}}}};
  return {"RmsNormPre", {{"x"}, {"residual"}, {"gamma"}}, {{"y", {0, 1}}, {"sum", {0, 1}}}};
}

// gamma, beta and bias: the last dim of x, and 1 before it.
Status check_vector(const char* name, const TensorDesc& vector, const TensorDesc& x) {
  if (last(vector) != last(x) || rows_of(vector) != 1)
    return bad_dim(name, vector, "[" + to_string(last(x)) + "] as the last dim of x " + text(x));
  return atb::NO_ERROR;
}

Status check_rms_norm(const RmsNormParam::NormParam& param) {
  if (!zeros(param.rsv)) return bad_param("normParam.rsv has bytes that are not 0");
  if (param.quantType != atb::infer::QUANT_UNQUANT ||
      param.dynamicQuantType != atb::infer::DYNAMIC_QUANT_UNDEFINED)
    return bad_param("normParam asks for int8; the emulation has no quantised RmsNorm");
  if (param.rstd) return bad_param("normParam.rstd is true; the emulation wants false");
  if (param.epsilon == 0) return bad_param("normParam.epsilon is 0");
  return atb::NO_ERROR;
}

Status check_rms_pre_norm(const RmsNormParam::PreNormParam& param) {
  if (!zeros(param.rsv)) return bad_param("preNormParam.rsv has bytes that are not 0");
  if (param.quantType != atb::infer::QUANT_UNQUANT)
    return bad_param("preNormParam asks for int8; the emulation has no quantised RmsNorm");
  if (param.epsilon == 0) return bad_param("preNormParam.epsilon is 0");
  return atb::NO_ERROR;
}

class RmsNorm : public SingleOperation {
 public:
  explicit RmsNorm(const RmsNormParam& param)
      : SingleOperation("RmsNormOperation", signature_of(param)), param_(param) {}

  static Status Check(const RmsNormParam& param) {
    if (param.layerType == RmsNormParam::RMS_NORM_NORM) return check_rms_norm(param.normParam);
    if (pre(param)) return check_rms_pre_norm(param.preNormParam);
    return bad_param("layerType is " + to_string(int(param.layerType)) +
                     ", wanted RMS_NORM_NORM or RMS_NORM_PRENORM");
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc& x = in[0];
    const int64_t step = x.dtype == ACL_FLOAT ? 8 : 16;
    if (last(x) % step != 0)
      return bad_dim("x", x, "a last dim that is a multiple of 32 bytes, " + to_string(step) +
                     " elements");
    const size_t bias = pre(param_) && param_.preNormParam.hasBias ? 1 : 0;
    Status status = check_vector("gamma", in[in.size() - 1], x);
    if (status == atb::NO_ERROR && bias != 0) status = check_vector("bias", in[1], x);
    if (status != atb::NO_ERROR) return status;
    if (pre(param_) && !same_shape(in[1 + bias], x))
      return bad_dim("residual", in[1 + bias], "the shape of x " + text(x));
    for (size_t i = 0; i < out.size(); ++i) out[i] = x;
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    with_type(desc_in(pack, 0).dtype, [&](auto type) { Compute<decltype(type)>(pack); });
    return atb::NO_ERROR;
  }

 private:
  template <class T> void Compute(const atb::VariantPack& pack) const {
    const int64_t n = last(desc_in(pack, 0)), rows = rows_of(desc_in(pack, 0));
    const bool gemma = !pre(param_) && param_.normParam.modelType == RmsNormParam::GEMMA_MODEL;
    const float eps = pre(param_) ? param_.preNormParam.epsilon : param_.normParam.epsilon;
    const size_t inputs = pack.inTensors.size();
    const Floats gamma(pack.inTensors[inputs - 1]);
    std::vector<float> x(static_cast<size_t>(n)), other(x.size()), scale(gamma.get(), gamma.get() + n);
    if (gemma)
      for (float& value : scale) value += 1;
    for (int64_t row = 0; row < rows; ++row) {
      widen(data_in<T>(pack, 0) + row * n, x.data(), n);
      if (pre(param_)) {
        for (size_t i = 1; i + 1 < inputs; ++i) {
          const int64_t from = i + 2 == inputs ? row : 0;
          widen(data_in<T>(pack, i) + from * n, other.data(), n);
          add_scaled(1, other.data(), x.data(), n);
        }
        narrow(x.data(), data_out<T>(pack, 1) + row * n, n);
      }
      const float mean = dot(x.data(), x.data(), n) / float(n);
      const float factor = 1 / std::sqrt(mean + eps);
      for (size_t i = 0; i < x.size(); ++i) x[i] *= factor * scale[i];
      narrow(x.data(), data_out<T>(pack, 0) + row * n, n);
    }
  }

  RmsNormParam param_;
};

class LayerNorm : public SingleOperation {
 public:
  explicit LayerNorm(const LayerNormParam& param)
      : SingleOperation("LayerNormOperation",
                        {"LayerNorm", {{"x"}, {"gamma"}, {"beta"}}, {{"y", {0}}}}),
        param_(param) {}

  static Status Check(const LayerNormParam& param) {
    if (param.layerType != LayerNormParam::LAYER_NORM_NORM)
      return bad_param("layerType is " + to_string(int(param.layerType)) +
                       ", wanted LAYER_NORM_NORM");
    if (!zeros(param.normParam.rsv)) return bad_param("normParam.rsv has bytes that are not 0");
    if (param.normParam.quantType != atb::infer::QUANT_UNQUANT ||
        param.normParam.dynamicQuantType != atb::infer::DYNAMIC_QUANT_UNDEFINED)
      return bad_param("normParam asks for int8; the emulation has no quantised LayerNorm");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const auto dims = static_cast<int64_t>(rank(in[0]));
    const int64_t axis = param_.normParam.beginNormAxis;
    if (axis != dims - 1 && axis != -1)
      return bad_param("normParam.beginNormAxis is " + to_string(axis) + ", wanted " +
                       to_string(dims - 1) + " or -1: the emulation norms the last dim");
    Status status = check_vector("gamma", in[1], in[0]);
    if (status == atb::NO_ERROR) status = check_vector("beta", in[2], in[0]);
    out[0] = in[0];
    return status;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    with_type(desc_in(pack, 0).dtype, [&](auto type) { Compute<decltype(type)>(pack); });
    return atb::NO_ERROR;
  }

 private:
  template <class T> void Compute(const atb::VariantPack& pack) const {
    const int64_t n = last(desc_in(pack, 0)), rows = rows_of(desc_in(pack, 0));
    const Floats gamma(pack.inTensors[1]), beta(pack.inTensors[2]);
    std::vector<float> x(static_cast<size_t>(n));
    for (int64_t row = 0; row < rows; ++row) {
      widen(data_in<T>(pack, 0) + row * n, x.data(), n);
      float mean = 0;
      for (float value : x) mean += value / float(n);
      for (float& value : x) value -= mean;
      const float variance = dot(x.data(), x.data(), n) / float(n);
      const float factor = 1 / std::sqrt(variance + param_.normParam.epsilon);
      for (int64_t i = 0; i < n; ++i)
        x[size_t(i)] = x[size_t(i)] * factor * gamma.get()[i] + beta.get()[i];
      narrow(x.data(), data_out<T>(pack, 0) + row * n, n);
    }
  }

  LayerNormParam param_;
};

}  // namespace

}  // namespace emulation

template <>
atb::Status atb::CreateOperation(const atb::infer::RmsNormParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::RmsNorm>("RmsNormOperation", param, operation);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::LayerNormParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::LayerNorm>("LayerNormOperation", param, operation);
}
