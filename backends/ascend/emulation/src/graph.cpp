#include "graph.hpp"
#include "infer.hpp"

namespace emulation {

using atb::Status;

namespace {

Tensors tensors_of(const Descs& descs) {
  Tensors tensors;
  tensors.resize(descs.size());
  for (size_t i = 0; i < descs.size(); ++i) {
    tensors[i].desc = descs[i];
    tensors[i].dataSize = atb::Utils::GetTensorSize(descs[i]);
  }
  return tensors;
}

}  // namespace

GraphOperation::GraphOperation(const atb::GraphParam& param)
    : param_(param), lives_(lives_of(param)) {}

GraphOperation::~GraphOperation() {
  for (const atb::Node& node : param_.nodes) delete node.operation;
}

std::string GraphOperation::Where(size_t index) const {
  return "node " + std::to_string(index) + ", ";
}

Status GraphOperation::SeenDesc(const atb::Node& node, size_t input, const AllDescs& all,
                                atb::TensorDesc& seen) const {
  const auto what = [&] {
    return "input " + std::to_string(input) + ", " +
           tensor_text(param_, node.inTensorIds[input]) + " ";
  };
  seen = all[node.inTensorIds[input]];
  if (input < node.inTensorChunks.size() && node.inTensorChunks[input].chunkNum > 1) {
    const int64_t parts = node.inTensorChunks[input].chunkNum;
    if (seen.shape.dims[0] % parts != 0)
      return fail(atb::ERROR_INVALID_GRAPH_NODE_CHUNK,
                  what() + text(seen) + " has no " + std::to_string(parts) + " equal parts");
    seen.shape.dims[0] /= parts;
  }
  if (input >= node.inTensorReshapeFuncs.size() || !node.inTensorReshapeFuncs[input])
    return atb::NO_ERROR;
  const atb::TensorDesc before = seen;
  seen.shape = atb::Dims();
  node.inTensorReshapeFuncs[input](before.shape, seen.shape);
  if (seen.shape.dimNum == 0)
    return fail(atb::ERROR_GRAPH_NODE_RESHAPE_FUNC_FAIL,
                what() + text(before) + ": its reshape function leaves dimNum at 0");
  const Status status = check_desc(seen);
  if (status != atb::NO_ERROR)
    return within(what() + text(before) + ", reshaped,", status);
  if (elements(before) != elements(seen))
    return fail(atb::ERROR_GRAPH_NODE_RESHAPE_FUNC_FAIL,
                what() + text(before) + " is reshaped to " + text(seen.shape) +
                    ", which has another number of elements");
  return atb::NO_ERROR;
}

Status GraphOperation::InferNode(size_t index, AllDescs& all, atb::VariantPack& made) const {
  const atb::Node& node = param_.nodes[index];
  Descs in, out;
  in.resize(node.inTensorIds.size());
  for (size_t i = 0; i < in.size(); ++i) {
    const Status status = SeenDesc(node, i, all, in[i]);
    if (status != atb::NO_ERROR) return within(node.operation->GetName() + ": ", status);
  }
  const Status status = node.operation->InferShape(in, out);
  if (status != atb::NO_ERROR) return status;
  made = {tensors_of(in), tensors_of(out)};
  for (size_t i = 0; i < out.size(); ++i) {
    atb::TensorDesc& desc = all[node.outTensorIds[i]];
    // What is written in place keeps its own shape, in whatever shape the operation saw it.
    if (desc.shape.dimNum == 0) desc = out[i];
    if (desc.dtype != out[i].dtype || elements(desc) != elements(out[i]))
      return fail(atb::ERROR_INVALID_TENSOR_DIM,
                  node.operation->GetName() + ": " + tensor_text(param_, node.outTensorIds[i]) +
                      " is " + text(desc) + " and written in place as " + text(out[i]));
  }
  return atb::NO_ERROR;
}

Status GraphOperation::InferAll(const Descs& in, AllDescs& all, Packs& packs) const {
  if (in.size() != param_.inTensorNum)
    return fail(atb::ERROR_INVALID_IN_TENSOR_NUM, std::to_string(in.size()) +
                                                      " inputs are given; there are " +
                                                      std::to_string(param_.inTensorNum));
  all.assign(lives_.size(), atb::TensorDesc());
  for (size_t i = 0; i < in.size(); ++i) {
    const Status status = check_desc(in[i]);
    if (status != atb::NO_ERROR) return within("input " + std::to_string(i), status);
    all[i] = in[i];
  }
  packs.resize(param_.nodes.size());
  for (size_t i = 0; i < param_.nodes.size(); ++i) {
    const Status status = InferNode(i, all, packs[i]);
    if (status != atb::NO_ERROR) return within(Where(i), status);
  }
  return atb::NO_ERROR;
}

Status GraphOperation::InferShape(const Descs& in, Descs& out) const {
  const std::string where = GetName() + ": ";
  if (param_.inferShapeFunc) {
    out.clear();
    out.resize(param_.outTensorNum);
    if (param_.inferShapeFunc(in, out) == atb::NO_ERROR) return atb::NO_ERROR;
    return fail(atb::ERROR_GRAPH_INFERSHAPE_FUNC_FAIL, where + "inferShapeFunc failed");
  }
  AllDescs all;
  Packs packs;
  const Status status = InferAll(in, all, packs);
  if (status != atb::NO_ERROR) return within(where, status);
  out.clear();
  out.resize(param_.outTensorNum);
  for (size_t i = 0; i < out.size(); ++i) out[i] = all[param_.inTensorNum + i];
  return atb::NO_ERROR;
}

Status GraphOperation::SetUpNodes(const atb::VariantPack& pack, atb::Context* context,
                                  uint64_t& most) {
  kernel_workspace_.assign(param_.nodes.size(), 0);
  most = 0;
  for (size_t i = 0; i < param_.nodes.size(); ++i) {
    Bind(i, pack, nullptr);
    const Status status =
        param_.nodes[i].operation->Setup(packs_[i], kernel_workspace_[i], context);
    if (status != atb::NO_ERROR) return within(Where(i), status);
    most = std::max(most, kernel_workspace_[i]);
  }
  return atb::NO_ERROR;
}

Status GraphOperation::SetUpAll(const atb::VariantPack& pack, atb::Context* context) {
  if (context == nullptr) return fail(atb::ERROR_INVALID_CONTEXT_ADDR, "Setup without a Context");
  AllDescs all;
  Status status = InferAll(descs_of(pack.inTensors), all, packs_);
  if (status != atb::NO_ERROR) return status;
  set_up_.context = context;
  set_up_.in = descs_of(pack.inTensors);
  set_up_.out.resize(param_.outTensorNum);
  for (size_t i = 0; i < param_.outTensorNum; ++i) set_up_.out[i] = all[param_.inTensorNum + i];
  status = check_same("output", pack.outTensors, set_up_.out);
  if (status != atb::NO_ERROR) return status;
  places_ = place(param_, lives_, all);
  uint64_t most = 0;
  status = SetUpNodes(pack, context, most);
  set_up_.workspace_size = places_.bytes + most;
  return status;
}

Status GraphOperation::Setup(const atb::VariantPack& pack, uint64_t& workspace_size,
                             atb::Context* context) {
  set_up_.done = false;
  const Status status = SetUpAll(pack, context);
  workspace_size = status == atb::NO_ERROR ? set_up_.workspace_size : 0;
  set_up_.done = status == atb::NO_ERROR;
  return within(GetName() + ": ", status);
}

}  // namespace emulation
