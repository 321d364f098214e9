// Operations on single elements, of one tensor or of two with broadcasting.
#include <cmath>
#include "helpers.hpp"

namespace emulation::elewise {

namespace {

using Param = atb::infer::ElewiseParam;

struct Kind {
  const char* table;
  size_t inputs;
};

Kind kind_of(Param::ElewiseType type) {
  switch (type) {
    case Param::ELEWISE_CAST: return {"Cast", 1};
    case Param::ELEWISE_MULS: return {"Muls", 1};
    case Param::ELEWISE_COS: return {"Cos", 1};
    case Param::ELEWISE_SIN: return {"Sin", 1};
    case Param::ELEWISE_NEG: return {"Neg", 1};
    case Param::ELEWISE_TANH: return {"Tanh", 1};
    case Param::ELEWISE_ADD: return {"Add", 2};
    case Param::ELEWISE_SUB: return {"Sub", 2};
    case Param::ELEWISE_MUL: return {"Mul", 2};
    case Param::ELEWISE_REALDIV: return {"RealDiv", 2};
    default: return {nullptr, 0};
  }
}

Signature signature_of(const Param& param) {
  const Kind kind = kind_of(param.elewiseType);
  if (param.elewiseType == Param::ELEWISE_CAST) return {kind.table, {{"x"}}, {{"y"}}};
  if (kind.inputs == 1) return {kind.table, {{"x"}}, {{"y", {0}}}};
  return {kind.table, {{"x"}, {"other"}}, {{"y", {0, 1}}}};
}

// How one operand is walked along the dims of the result: 0 where it is repeated.
struct Walk {
  int64_t steps[atb::MAX_DIM] = {};

  Walk(const TensorDesc& operand, const TensorDesc& result) {
    int64_t step = 1;
    const uint64_t missing = rank(result) - rank(operand);
    for (uint64_t i = rank(operand); i-- > 0;) {
      steps[missing + i] = dim(operand, i) == 1 ? 0 : step;
      step *= dim(operand, i);
    }
  }
  int64_t at(const TensorDesc& result, int64_t row) const {
    int64_t place = 0;
    for (uint64_t i = rank(result) - 1; i-- > 0;) {
      place += row % dim(result, i) * steps[i];
      row /= dim(result, i);
    }
    return place;
  }
};

// f(x, other) for every element of the result.
template <class T, class F>
void zip(const atb::VariantPack& pack, const T* x, const T* other, T* y, F f) {
  const TensorDesc& result = desc_out(pack, 0);
  const Walk first(desc_in(pack, 0), result), second(desc_in(pack, 1), result);
  const int64_t n = last(result), rows = rows_of(result);
  const int64_t step_x = first.steps[rank(result) - 1], step_other = second.steps[rank(result) - 1];
  for (int64_t row = 0; row < rows; ++row) {
    const T *a = x + first.at(result, row), *b = other + second.at(result, row);
    for (int64_t i = 0; i < n; ++i) y[row * n + i] = f(a[i * step_x], b[i * step_other]);
  }
}

template <class From, class To> void convert(const atb::VariantPack& pack) {
  const From* x = data_in<From>(pack, 0);
  To* y = data_out<To>(pack, 0);
  for (int64_t i = 0; i < numel(desc_in(pack, 0)); ++i) y[i] = static_cast<To>(x[i]);
}

class Elewise : public SingleOperation {
 public:
  explicit Elewise(const Param& param)
      : SingleOperation("ElewiseOperation", signature_of(param)), param_(param) {}

  static Status Check(const Param& param) {
    if (kind_of(param.elewiseType).table == nullptr)
      return bad_param("elewiseType is " + to_string(int(param.elewiseType)) +
                       "; the emulation has CAST, MULS, COS, SIN, NEG, TANH, ADD, SUB, MUL and "
                       "REALDIV");
    if (!zeros(param.quantParam.rsv) || !zeros(param.mulsParam.rsv))
      return bad_param("quantParam.rsv or mulsParam.rsv has bytes that are not 0");
    if (param.elewiseType == Param::ELEWISE_CAST && param.outTensorType == ACL_DT_UNDEFINED)
      return bad_param("outTensorType is ACL_DT_UNDEFINED, wanted what CAST makes");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    out[0] = in[0];
    if (in.size() == 2) return Broadcast(in, out[0]);
    if (param_.elewiseType == Param::ELEWISE_CAST) out[0].dtype = param_.outTensorType;
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    for (const atb::Tensor& operand : pack.inTensors)
      if (operand.deviceData == pack.outTensors[0].deviceData &&
          !same_shape(operand.desc, desc_out(pack, 0)))
        return fail(atb::ERROR_INVALID_TENSOR_ADDR,
                    "y is the memory of an operand that is repeated, " + text(operand.desc));
    const aclDataType dtype = desc_in(pack, 0).dtype;
    const bool cast = param_.elewiseType == Param::ELEWISE_CAST;
    if (dtype == ACL_INT32)
      cast ? convert<int32_t, int64_t>(pack) : Whole<int32_t, uint32_t>(pack);
    else if (dtype == ACL_INT64)
      cast ? convert<int64_t, int32_t>(pack) : Whole<int64_t, uint64_t>(pack);
    else
      Floating(pack);
    return atb::NO_ERROR;
  }

 private:
  static Status Broadcast(const Descs& in, TensorDesc& out) {
    const bool second = rank(in[1]) > rank(in[0]);
    out = in[second ? 1 : 0];
    const TensorDesc& small = in[second ? 0 : 1];
    const uint64_t missing = rank(out) - rank(small);
    for (uint64_t i = 0; i < rank(small); ++i) {
      int64_t& size = out.shape.dims[missing + i];
      if (size != dim(small, i) && size != 1 && dim(small, i) != 1)
        return bad_dim("other", in[1], "sizes of x " + text(in[0]) + ", or 1");
      if (size == 1) size = dim(small, i);
    }
    return atb::NO_ERROR;
  }

  // Whole numbers wrap around.
  template <class T, class Unsigned> void Whole(const atb::VariantPack& pack) const {
    const bool add = param_.elewiseType == Param::ELEWISE_ADD;
    zip(pack, data_in<T>(pack, 0), data_in<T>(pack, 1), data_out<T>(pack, 0), [&](T a, T b) {
      return static_cast<T>(add ? Unsigned(a) + Unsigned(b) : Unsigned(a) - Unsigned(b));
    });
  }

  void Floating(const atb::VariantPack& pack) const {
    const Floats x(pack.inTensors[0]);
    const Rounded y(pack.outTensors[0]);
    if (pack.inTensors.size() == 2) {
      const Floats other(pack.inTensors[1]);
      zip(pack, x.get(), other.get(), y.get(), [&](float a, float b) { return Both(a, b); });
    } else {
      for (int64_t i = 0; i < numel(desc_in(pack, 0)); ++i) y.get()[i] = Value(x.get()[i]);
    }
    y.Store();
  }

  float Both(float a, float b) const {
    switch (param_.elewiseType) {
      case Param::ELEWISE_ADD: return a + b;
      case Param::ELEWISE_SUB: return a - b;
      case Param::ELEWISE_MUL: return a * b;
      default: return a / b;
    }
  }

  float Value(float x) const {
    switch (param_.elewiseType) {
      case Param::ELEWISE_MULS: return x * param_.mulsParam.varAttr;
      case Param::ELEWISE_COS: return std::cos(x);
      case Param::ELEWISE_SIN: return std::sin(x);
      case Param::ELEWISE_TANH: return std::tanh(x);
      case Param::ELEWISE_NEG: return -x;
      default: return x;
    }
  }

  Param param_;
};

}  // namespace

}  // namespace emulation::elewise

template <>
atb::Status atb::CreateOperation(const atb::infer::ElewiseParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::elewise::Elewise>("ElewiseOperation", param, operation);
}
