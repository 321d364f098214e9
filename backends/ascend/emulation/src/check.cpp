#include "check.hpp"
#include "acl.hpp"
#include "infer.hpp"

namespace emulation {

namespace {

constexpr uint64_t MOST_BYTES = uint64_t{256} << 30;

atb::Status check_fractal(const atb::TensorDesc& desc) {
  const uint64_t rank = desc.shape.dimNum;
  if (desc.format != ACL_FORMAT_FRACTAL_NZ) return atb::NO_ERROR;
  if (rank == 1)
    return fail(atb::ERROR_INVALID_TENSOR_DIM_NUM,
                            " is " + text(desc) + "; nz needs at least 2 dims");
  const int64_t last = desc.shape.dims[rank - 1], rows = desc.shape.dims[rank - 2];
  if (rank <= 3 || (last == fractal(desc.dtype) && rows % 16 == 0)) return atb::NO_ERROR;
  return fail(atb::ERROR_INVALID_TENSOR_DIM,
              " is " + text(desc) + "; in nz its last size is " +
                  std::to_string(fractal(desc.dtype)) + " and the one before is a multiple of 16");
}

atb::Status check_memory(const atb::Tensor& tensor) {
  const uint64_t wanted = atb::Utils::GetTensorSize(tensor.desc);
  if (tensor.dataSize != wanted)
    return fail(atb::ERROR_INVALID_TENSOR_SIZE,
                " " + text(tensor.desc) + ": dataSize is " +
                    std::to_string(tensor.dataSize) + ", its size is " + std::to_string(wanted));
  if (tensor.deviceData == nullptr && tensor.hostData == nullptr)
    return fail(atb::ERROR_INVALID_TENSOR_ADDR,
                " " + text(tensor.desc) + ": deviceData and hostData are both null");
  return atb::NO_ERROR;
}

atb::Status check_memory(const std::string& what, const Tensors& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const atb::Status status = check_memory(tensors[i]);
    if (status != atb::NO_ERROR) return within(what + " " + std::to_string(i), status);
  }
  return atb::NO_ERROR;
}

}  // namespace

atb::Status check_desc(const atb::TensorDesc& desc) {
  const uint64_t rank = desc.shape.dimNum;
  if (rank == 0 || rank > atb::MAX_DIM)
    return fail(atb::ERROR_INVALID_TENSOR_DIM_NUM,
                " has " + std::to_string(rank) + " dims; 1 to 8 are possible");
  for (uint64_t i = 0; i < rank; ++i)
    if (desc.shape.dims[i] <= 0)
      return fail(atb::ERROR_INVALID_TENSOR_DIM,
                  " is " + text(desc) + "; sizes are greater than 0");
  if (atb::Utils::GetTensorSize(desc) > MOST_BYTES)
    return fail(atb::ERROR_INVALID_TENSOR_SIZE,
                " is " + text(desc) + "; a tensor has at most 256 GB");
  return check_fractal(desc);
}

atb::Status check_same(const std::string& what, const Tensors& found, const Descs& wanted) {
  if (found.size() != wanted.size())
    return fail(what == "input" ? atb::ERROR_INVALID_IN_TENSOR_NUM : atb::ERROR_INVALID_TENSOR_NUM,
                std::to_string(found.size()) + " " + what + "s are given; there are " +
                    std::to_string(wanted.size()));
  for (size_t i = 0; i < wanted.size(); ++i) {
    const atb::TensorDesc &have = found[i].desc, &want = wanted[i];
    if (same(have, want)) continue;
    const atb::Status code = have.dtype != want.dtype     ? atb::ERROR_INVALID_TENSOR_DTYPE
                             : have.format != want.format ? atb::ERROR_INVALID_TENSOR_FORMAT
                             : have.shape.dimNum != want.shape.dimNum
                                 ? atb::ERROR_INVALID_TENSOR_DIM_NUM
                                 : atb::ERROR_INVALID_TENSOR_DIM;
    return fail(code, what + " " + std::to_string(i) + " is " + text(have) + "; wanted is " +
                          text(want));
  }
  return atb::NO_ERROR;
}

atb::Status SetUp::check(const atb::VariantPack& pack, const uint8_t* workspace,
                         uint64_t given_size, const atb::Context* given_context) const {
  if (!done) return fail(atb::ERROR_RT_FAIL, "Execute without a Setup that succeeded");
  if (given_context != context)
    return fail(atb::ERROR_INVALID_CONTEXT_ADDR, "Execute has another Context than Setup had");
  if (!use_stream(context->GetExecuteStream()))
    return fail(atb::ERROR_INVALID_STREAM, "the Context has no stream that aclrtCreateStream made");
  if (given_size < workspace_size)
    return fail(atb::ERROR_INVALID_WORKSPACE_SIZE, "the workspace has " +
                                                       std::to_string(given_size) + " bytes; " +
                                                       "Setup asked for " +
                                                       std::to_string(workspace_size));
  if (workspace_size > 0 && workspace == nullptr)
    return fail(atb::ERROR_INVALID_WORKSPACE_ADDR, "the workspace is null");
  atb::Status status = check_same("input", pack.inTensors, in);
  if (status == atb::NO_ERROR) status = check_same("output", pack.outTensors, out);
  if (status != atb::NO_ERROR) return within("Execute after a Setup of other tensors: ", status);
  status = check_memory("input", pack.inTensors);
  return status != atb::NO_ERROR ? status : check_memory("output", pack.outTensors);
}

Descs descs_of(const Tensors& tensors) {
  Descs descs;
  descs.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) descs[i] = tensors[i].desc;
  return descs;
}

bool overlap(const atb::Tensor& one, const atb::Tensor& other) {
  const auto* first = static_cast<const uint8_t*>(one.deviceData);
  const auto* second = static_cast<const uint8_t*>(other.deviceData);
  if (first == nullptr || second == nullptr) return false;
  return first < second + other.dataSize && second < first + one.dataSize;
}

}  // namespace emulation
