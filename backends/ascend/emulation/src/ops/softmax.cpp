// Softmax along one axis.
#include <vector>
#include "../math/attention.hpp"
#include "helpers.hpp"

namespace emulation::softmax_op {

namespace {

using Param = atb::infer::SoftmaxParam;

class Softmax : public SingleOperation {
 public:
  explicit Softmax(const Param& param)
      : SingleOperation("SoftmaxOperation", {"Softmax", {{"x"}}, {{"y", {0}}}}), param_(param) {}

  static Status Check(const Param& param) {
    if (param.axes.size() == 1) return atb::NO_ERROR;
    return bad_param("axes has " + to_string(param.axes.size()) +
                     " values; the emulation takes 1");
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const auto dims = int64_t(rank(in[0]));
    if (param_.axes[0] < -dims || param_.axes[0] >= dims)
      return bad_param("axes[0] is " + to_string(param_.axes[0]) + ", x is " + text(in[0]));
    out[0] = in[0];
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& desc = desc_in(pack, 0);
    const int64_t given = param_.axes[0];
    const auto axis = uint64_t(given < 0 ? given + int64_t(rank(desc)) : given);
    const int64_t n = dim(desc, axis), inner = product(desc, axis + 1, rank(desc));
    const Floats x(pack.inTensors[0]);
    const Rounded y(pack.outTensors[0]);
    std::vector<float> line(static_cast<size_t>(n));
    for (int64_t i = 0; i < numel(desc) / n; ++i) {
      const int64_t first = i / inner * n * inner + i % inner;
      for (int64_t k = 0; k < n; ++k) line[size_t(k)] = x.get()[first + k * inner];
      softmax(line.data(), n);
      for (int64_t k = 0; k < n; ++k) y.get()[first + k * inner] = line[size_t(k)];
    }
    y.Store();
    return atb::NO_ERROR;
  }

 private:
  Param param_;
};

}  // namespace

}  // namespace emulation::softmax_op

template <>
atb::Status atb::CreateOperation(const atb::infer::SoftmaxParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::softmax_op::Softmax>("SoftmaxOperation", param, operation);
}
