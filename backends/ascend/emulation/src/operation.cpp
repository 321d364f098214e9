#include "operation.hpp"
#include "infer.hpp"
#include "tables.hpp"

namespace emulation {

namespace {

std::string input_text(const Signature& signature, size_t index) {
  return "input " + std::to_string(index) + " (" + signature.inputs[index].name + ")";
}

std::string output_text(const Signature& signature, size_t index) {
  return "output " + std::to_string(index) + " (" + signature.outputs[index].name + ")";
}

Status check_bf16(const Signature& signature, const Descs& in) {
  for (size_t i = 0; is_310p() && i < in.size(); ++i)
    if (in[i].dtype == ACL_BF16)
      return fail(atb::ERROR_INVALID_TENSOR_DTYPE,
                  input_text(signature, i) + " is " + text(in[i]) + "; the 310P has no bf16");
  return atb::NO_ERROR;
}

bool listed(const std::vector<uint32_t>& list, size_t item) {
  for (uint32_t one : list)
    if (one == item) return true;
  return false;
}

// An output may share the memory of an input as a whole and only where the operation allows it.
Status check_output(const Signature& signature, const atb::VariantPack& pack, size_t index) {
  const Output& output = signature.outputs[index];
  const atb::Tensor& tensor = pack.outTensors[index];
  if (output.in_place && tensor.deviceData != pack.inTensors[output.may_be[0]].deviceData)
    return fail(atb::ERROR_INVALID_TENSOR_ADDR,
                output_text(signature, index) + " has to be the memory of " +
                    input_text(signature, output.may_be[0]));
  for (size_t i = 0; i < pack.inTensors.size(); ++i) {
    const bool whole = tensor.deviceData == pack.inTensors[i].deviceData;
    if (overlap(tensor, pack.inTensors[i]) && !(whole && listed(output.may_be, i)))
      return fail(atb::ERROR_INVALID_TENSOR_ADDR, output_text(signature, index) +
                                                      " overlaps " + input_text(signature, i) +
                                                      ", which is still read");
  }
  for (size_t i = 0; i < index; ++i)
    if (overlap(tensor, pack.outTensors[i]))
      return fail(atb::ERROR_INVALID_TENSOR_ADDR,
                  output_text(signature, index) + " overlaps " + output_text(signature, i));
  return atb::NO_ERROR;
}

}  // namespace

SingleOperation::SingleOperation(std::string name, Signature signature)
    : name_(std::move(name)), signature_(std::move(signature)) {}

Status SingleOperation::CheckHost(const Descs&) const { return atb::NO_ERROR; }

uint64_t SingleOperation::WorkspaceSize(const Descs&) const { return 0; }

Status SingleOperation::InferShape(const Descs& in, Descs& out) const {
  return within(name_ + ": ", InferAll(in, out));
}

Status SingleOperation::InferAll(const Descs& in, Descs& out) const {
  if (in.size() != GetInputNum())
    return fail(atb::ERROR_INVALID_IN_TENSOR_NUM, std::to_string(in.size()) +
                                                      " inputs are given; there are " +
                                                      std::to_string(GetInputNum()));
  for (size_t i = 0; i < in.size(); ++i) {
    const Status status = check_desc(in[i]);
    if (status != atb::NO_ERROR) return within(input_text(signature_, i), status);
  }
  Status status = check_table(signature_, in, nullptr);
  if (status == atb::NO_ERROR) status = check_bf16(signature_, in);
  if (status != atb::NO_ERROR) return status;
  out.clear();
  out.resize(GetOutputNum());
  status = Infer(in, out);
  return status != atb::NO_ERROR ? status : check_table(signature_, in, &out);
}

Status SingleOperation::Setup(const atb::VariantPack& pack, uint64_t& workspace_size,
                              atb::Context* context) {
  set_up_.done = false;
  const Status status = SetUpAll(pack, context);
  workspace_size = status == atb::NO_ERROR ? set_up_.workspace_size : 0;
  set_up_.done = status == atb::NO_ERROR;
  return within(name_ + ": ", status);
}

Status SingleOperation::SetUpAll(const atb::VariantPack& pack, atb::Context* context) {
  if (context == nullptr)
    return fail(atb::ERROR_INVALID_CONTEXT_ADDR, "Setup without a Context");
  set_up_.context = context;
  set_up_.in = descs_of(pack.inTensors);
  Status status = InferAll(set_up_.in, set_up_.out);
  if (status == atb::NO_ERROR) status = check_same("output", pack.outTensors, set_up_.out);
  if (status == atb::NO_ERROR) status = ReadHost(pack);
  if (status == atb::NO_ERROR) status = CheckHost(set_up_.in);
  if (status == atb::NO_ERROR) set_up_.workspace_size = WorkspaceSize(set_up_.in);
  return status;
}

Status SingleOperation::ReadHost(const atb::VariantPack& pack) {
  host_.assign(pack.inTensors.size(), {});
  for (size_t i = 0; i < pack.inTensors.size(); ++i) {
    const atb::Tensor& tensor = pack.inTensors[i];
    if (signature_.inputs[i].place == Place::Device) continue;
    const auto what = [&] { return input_text(signature_, i) + " " + text(tensor.desc); };
    if (tensor.hostData == nullptr)
      return fail(atb::ERROR_INVALID_TENSOR_ADDR,
                  what() + ": hostData is null; Setup reads its values there");
    if (tensor.dataSize != atb::Utils::GetTensorSize(tensor.desc))
      return fail(atb::ERROR_INVALID_TENSOR_SIZE,
                  what() + ": dataSize is " + std::to_string(tensor.dataSize) + ", its size is " +
                      std::to_string(atb::Utils::GetTensorSize(tensor.desc)));
    const auto* values = static_cast<const int32_t*>(tensor.hostData);
    host_[i].assign(values, values + elements(tensor.desc));
  }
  return atb::NO_ERROR;
}

Status SingleOperation::CheckData(const atb::VariantPack& pack) const {
  for (size_t i = 0; i < pack.inTensors.size(); ++i) {
    const atb::Tensor& tensor = pack.inTensors[i];
    const Place place = signature_.inputs[i].place;
    const auto what = [&] { return input_text(signature_, i) + " " + text(tensor.desc); };
    if (place != Place::Host && tensor.deviceData == nullptr)
      return fail(atb::ERROR_INVALID_TENSOR_ADDR, what() + ": deviceData is null");
    const auto* values = static_cast<const int32_t*>(tensor.hostData);
    if (place == Place::Device || values == nullptr) continue;
    if (!std::equal(host_[i].begin(), host_[i].end(), values))
      return fail(atb::ERROR_INVALID_PARAM,
                  what() + ": its values on the host are not those that Setup read; Setup again");
  }
  for (size_t i = 0; i < pack.outTensors.size(); ++i) {
    if (pack.outTensors[i].deviceData == nullptr)
      return fail(atb::ERROR_INVALID_TENSOR_ADDR,
                  output_text(signature_, i) + " " + text(pack.outTensors[i].desc) +
                      ": deviceData is null");
    const Status status = check_output(signature_, pack, i);
    if (status != atb::NO_ERROR) return status;
  }
  return atb::NO_ERROR;
}

Status SingleOperation::Execute(const atb::VariantPack& pack, uint8_t* workspace,
                                uint64_t workspace_size, atb::Context* context) {
  Status status = set_up_.check(pack, workspace, workspace_size, context);
  if (status == atb::NO_ERROR) status = CheckData(pack);
  if (status == atb::NO_ERROR) status = Run(pack, workspace);
  return within(name_ + ": ", status);
}

}  // namespace emulation

namespace atb {

Status DestroyOperation(Operation* operation) {
  if (operation == nullptr)
    return emulation::fail(ERROR_INVALID_OPERATION_ADDR, "DestroyOperation: it is null");
  delete operation;
  return NO_ERROR;
}

}  // namespace atb
