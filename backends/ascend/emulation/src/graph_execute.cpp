#include "graph.hpp"

namespace emulation {

using atb::Status;

namespace {

// The memory of a tensor, from a chunk of it on.
void point(atb::Tensor& tensor, void* device, void* host, uint64_t offset) {
  tensor.deviceData = device == nullptr ? nullptr : static_cast<uint8_t*>(device) + offset;
  tensor.hostData = host == nullptr ? nullptr : static_cast<uint8_t*>(host) + offset;
}

}  // namespace

void GraphOperation::Bind(size_t index, const atb::VariantPack& pack, uint8_t* workspace) {
  const atb::Node& node = param_.nodes[index];
  const uint32_t outputs = param_.inTensorNum, internals = outputs + param_.outTensorNum;
  const auto bind = [&](atb::Tensor& tensor, uint32_t id, uint64_t offset) {
    if (id < outputs) {
      point(tensor, pack.inTensors[id].deviceData, pack.inTensors[id].hostData, offset);
    } else if (id < internals) {
      const atb::Tensor& output = pack.outTensors[id - outputs];
      point(tensor, output.deviceData, output.hostData, offset);
    } else {
      uint8_t* begin = workspace == nullptr ? nullptr : workspace + places_.offsets[id - internals];
      point(tensor, begin, nullptr, offset);
    }
  };
  for (size_t i = 0; i < node.inTensorIds.size(); ++i) {
    atb::Tensor& tensor = packs_[index].inTensors[i];
    const bool part = i < node.inTensorChunks.size();
    bind(tensor, node.inTensorIds[i],
         part ? node.inTensorChunks[i].chunkIndex * tensor.dataSize : 0);
  }
  for (size_t i = 0; i < node.outTensorIds.size(); ++i)
    bind(packs_[index].outTensors[i], node.outTensorIds[i], 0);
}

// An output may have the memory of an input that nobody reads after the output is first written.
Status GraphOperation::CheckOverlaps(const atb::VariantPack& pack) const {
  for (size_t i = 0; i < pack.outTensors.size(); ++i) {
    const int64_t first = lives_[param_.inTensorNum + i].first;
    for (size_t j = 0; j < pack.inTensors.size(); ++j)
      if (lives_[j].last > first && overlap(pack.outTensors[i], pack.inTensors[j]))
        return fail(atb::ERROR_INVALID_TENSOR_ADDR,
                    "output " + std::to_string(i) + " overlaps input " + std::to_string(j) +
                        ", which is read after the output is written");
    for (size_t j = 0; j < i; ++j)
      if (overlap(pack.outTensors[i], pack.outTensors[j]))
        return fail(atb::ERROR_INVALID_TENSOR_ADDR, "output " + std::to_string(i) +
                                                        " overlaps output " + std::to_string(j));
  }
  return atb::NO_ERROR;
}

Status GraphOperation::Execute(const atb::VariantPack& pack, uint8_t* workspace,
                               uint64_t workspace_size, atb::Context* context) {
  const std::string where = GetName() + ": ";
  Status status = set_up_.check(pack, workspace, workspace_size, context);
  if (status == atb::NO_ERROR) status = CheckOverlaps(pack);
  if (status != atb::NO_ERROR) return within(where, status);
  for (size_t i = 0; i < param_.nodes.size(); ++i) {
    Bind(i, pack, workspace);
    uint8_t* kernels = workspace == nullptr ? nullptr : workspace + places_.bytes;
    status = param_.nodes[i].operation->Execute(packs_[i], kernels, kernel_workspace_[i], context);
    if (status != atb::NO_ERROR) return within(where + Where(i), status);
  }
  return atb::NO_ERROR;
}

}  // namespace emulation

namespace atb {

template <>
Status CreateOperation(const GraphParam& param, Operation** operation) {
  if (operation == nullptr)
    return emulation::fail(ERROR_INVALID_PARAM, "CreateOperation: operation is null");
  *operation = nullptr;
  const Status status = emulation::check_graph(param);
  const std::string name = param.name.empty() ? "graph" : param.name;
  if (status != NO_ERROR) return emulation::within(name + ": ", status);
  *operation = new emulation::GraphOperation(param);
  return NO_ERROR;
}

}  // namespace atb
