// RmsNorm (alone, or behind the sum of x and a residual) and LayerNorm.
#include <algorithm>
#include <cmath>
#include <vector>
#include "helpers.hpp"

namespace emulation::norm {

namespace {

using atb::infer::LayerNormParam;
using atb::infer::RmsNormParam;

// What a layerType asks for.
struct Kind {
  float epsilon = 0;
  bool adds = false, bias = false, sum = false, gemma = false;
};

Kind kind_of(const RmsNormParam& param) {
  const auto &norm = param.normParam;
  const auto &pre = param.preNormParam;
  const auto &post = param.postNormParam;
  if (param.layerType == RmsNormParam::RMS_NORM_PRENORM)
    return {pre.epsilon, true, pre.hasBias, true, false};
  if (param.layerType == RmsNormParam::RMS_NORM_POSTNORM)
    return {post.epsilon, true, post.hasBias, false, false};
  return {norm.epsilon, false, false, false, norm.modelType == RmsNormParam::GEMMA_MODEL};
}

Signature signature_of(const RmsNormParam& param) {
  const Kind kind = kind_of(param);
  if (!kind.adds) return {"RmsNorm", {{"x"}, {"gamma"}}, {{"y", {0}}}};
  const uint32_t residual = kind.bias ? 2 : 1;
  Signature made = {kind.sum ? "RmsNormPre" : "RmsNormPost", {{"x"}}, {{"y", {0, residual}}}};
  if (kind.bias) made.inputs.push_back({"bias"});
  made.inputs.insert(made.inputs.end(), {{"residual"}, {"gamma"}});
  if (kind.sum) made.outputs.push_back({"sum", {0, residual}});
  return made;
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

// PreNormParam and PostNormParam are alike.
template <class Param> Status check_rms_sum(const char* name, const Param& param) {
  if (!zeros(param.rsv)) return bad_param(std::string(name) + ".rsv has bytes that are not 0");
  if (param.quantType != atb::infer::QUANT_UNQUANT)
    return bad_param(std::string(name) +
                     " asks for int8; the emulation has no quantised RmsNorm");
  if (param.epsilon == 0) return bad_param(std::string(name) + ".epsilon is 0");
  return atb::NO_ERROR;
}

class RmsNorm : public SingleOperation {
 public:
  explicit RmsNorm(const RmsNormParam& param)
      : SingleOperation("RmsNormOperation", signature_of(param)), kind_(kind_of(param)) {}

  static Status Check(const RmsNormParam& param) {
    if (param.layerType == RmsNormParam::RMS_NORM_NORM) return check_rms_norm(param.normParam);
    if (param.layerType == RmsNormParam::RMS_NORM_PRENORM)
      return check_rms_sum("preNormParam", param.preNormParam);
    if (param.layerType == RmsNormParam::RMS_NORM_POSTNORM)
      return check_rms_sum("postNormParam", param.postNormParam);
    return bad_param("layerType is RMS_NORM_UNDEFINED, wanted RMS_NORM_NORM, RMS_NORM_PRENORM or "
                     "RMS_NORM_POSTNORM");
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc& x = in[0];
    if (last(x) % 16 != 0)
      return bad_dim("x", x, "a last dim that is a multiple of 32 bytes, 16 elements");
    Status status = check_vector("gamma", in[in.size() - 1], x);
    if (status == atb::NO_ERROR && kind_.bias) status = check_vector("bias", in[1], x);
    if (status != atb::NO_ERROR) return status;
    if (kind_.adds && !same_shape(in[in.size() - 2], x))
      return bad_dim("residual", in[in.size() - 2], "the shape of x " + text(x));
    for (TensorDesc& made : out) made = x;
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const int64_t n = last(desc_in(pack, 0)), rows = rows_of(desc_in(pack, 0));
    const size_t inputs = pack.inTensors.size();
    const Floats gamma(pack.inTensors[inputs - 1]);
    const Rounded y(pack.outTensors[0]);
    std::vector<float> sum(static_cast<size_t>(rows * n));
    widen_from(pack.inTensors[0], 0, rows * n, sum.data());
    for (size_t i = 1; i + 1 < inputs; ++i) {
      const Floats added(pack.inTensors[i]);
      const bool every_row = i + 2 < inputs;
      for (int64_t row = 0; row < rows; ++row)
        add_scaled(1, added.get() + (every_row ? 0 : row * n), sum.data() + row * n, n);
    }
    for (int64_t row = 0; row < rows; ++row)
      Norm(sum.data() + row * n, gamma.get(), n, y.get() + row * n);
    y.Store();
    if (!kind_.sum) return atb::NO_ERROR;
    const Rounded kept(pack.outTensors[1]);
    std::copy(sum.begin(), sum.end(), kept.get());
    kept.Store();
    return atb::NO_ERROR;
  }

 private:
  void Norm(const float* x, const float* gamma, int64_t n, float* y) const {
    const float factor = 1 / std::sqrt(dot(x, x, n) / float(n) + kind_.epsilon);
    const float more = kind_.gemma ? 1.f : 0.f;
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * (gamma[i] + more);
  }

  Kind kind_;
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
    const int64_t n = last(desc_in(pack, 0)), rows = rows_of(desc_in(pack, 0));
    const Floats x(pack.inTensors[0]), gamma(pack.inTensors[1]), beta(pack.inTensors[2]);
    const Rounded y(pack.outTensors[0]);
    for (int64_t row = 0; row < rows; ++row)
      Norm(x.get() + row * n, gamma.get(), beta.get(), n, y.get() + row * n);
    y.Store();
    return atb::NO_ERROR;
  }

 private:
  void Norm(const float* x, const float* gamma, const float* beta, int64_t n, float* y) const {
    float mean = 0;
    for (int64_t i = 0; i < n; ++i) mean += x[i] / float(n);
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] - mean;
    const float factor = 1 / std::sqrt(dot(y, y, n) / float(n) + param_.normParam.epsilon);
    for (int64_t i = 0; i < n; ++i) y[i] = y[i] * factor * gamma[i] + beta[i];
  }

  LayerNormParam param_;
};

}  // namespace

}  // namespace emulation::norm

template <>
atb::Status atb::CreateOperation(const atb::infer::RmsNormParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::norm::RmsNorm>("RmsNormOperation", param, operation);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::LayerNormParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::norm::LayerNorm>("LayerNormOperation", param, operation);
}
