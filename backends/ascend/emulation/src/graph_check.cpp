#include <cctype>
#include <set>
#include "graph.hpp"
#include "operation.hpp"

namespace emulation {

namespace {

constexpr uint32_t MOST_TENSORS = 256;
constexpr size_t MOST_NODES = 1024, LONGEST_NAME = 128;

Status refuse(const std::string& sentence) { return fail(atb::ERROR_INVALID_GRAPH, sentence); }

Status check_name(const std::string& name) {
  bool legal = name.size() <= LONGEST_NAME;
  for (char letter : name)
    legal = legal && (std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == '_');
  return legal ? Status(atb::NO_ERROR)
               : refuse("name `" + name + "`: at most 128 of [A-Za-z0-9_] are possible");
}

Status check_limits(const atb::GraphParam& param) {
  const uint32_t most =
      std::max(std::max(param.inTensorNum, param.outTensorNum), param.internalTensorNum);
  if (most > MOST_TENSORS)
    return refuse("a graph has " + std::to_string(most) + " tensors of a kind; " +
                  "at most 256 inputs, outputs and internal tensors are possible");
  if (param.nodes.size() > MOST_NODES)
    return refuse("a graph has " + std::to_string(param.nodes.size()) +
                  " nodes; at most 1024 are possible");
  return check_name(param.name);
}

std::string node_text(const atb::Node& node, size_t index) {
  return "node " + std::to_string(index) +
         (node.operation == nullptr ? "" : " (" + node.operation->GetName() + ")");
}

Status check_arity(const atb::Node& node) {
  const size_t in = node.inTensorIds.size(), out = node.outTensorIds.size();
  if (in != node.operation->GetInputNum() || out != node.operation->GetOutputNum())
    return refuse("has " + std::to_string(in) + " inputs and " + std::to_string(out) +
                  " outputs; wanted are " + std::to_string(node.operation->GetInputNum()) +
                  " and " + std::to_string(node.operation->GetOutputNum()));
  if (node.inTensorReshapeFuncs.size() > in)
    return refuse("has more reshape functions than inputs");
  if (node.inTensorChunks.size() > in) return refuse("has more chunks than inputs");
  for (const atb::Chunk& chunk : node.inTensorChunks)
    if (chunk.chunkNum == 0 || chunk.chunkIndex >= chunk.chunkNum)
      return fail(atb::ERROR_INVALID_GRAPH_NODE_CHUNK,
                  "has chunk " + std::to_string(chunk.chunkIndex) + " of " +
                      std::to_string(chunk.chunkNum));
  return atb::NO_ERROR;
}

Status check_ids(const atb::GraphParam& param, const atb::Node& node) {
  const uint32_t count = param.inTensorNum + param.outTensorNum + param.internalTensorNum;
  for (const auto* ids : {&node.inTensorIds, &node.outTensorIds})
    for (uint32_t id : *ids)
      if (id >= count)
        return refuse("has tensor id " + std::to_string(id) + "; the graph's ids end at " +
                      std::to_string(int64_t{count} - 1));
  return atb::NO_ERROR;
}

Status check_reads(const atb::GraphParam& param, const atb::Node& node,
                   const std::vector<bool>& assigned) {
  for (size_t i = 0; i < node.inTensorIds.size(); ++i)
    if (!assigned[node.inTensorIds[i]])
      return refuse("input " + std::to_string(i) + " is " +
                    tensor_text(param, node.inTensorIds[i]) +
                    ", which no node before has written");
  return atb::NO_ERROR;
}

const Signature* signature_of(const atb::Node& node) {
  const auto* single = dynamic_cast<const SingleOperation*>(node.operation);
  return single == nullptr ? nullptr : &single->signature();
}

bool in_place(const atb::Node& node, size_t output) {
  const Signature* signature = signature_of(node);
  if (signature == nullptr) return false;
  for (uint32_t input : signature->outputs[output].may_be)
    if (node.inTensorIds[input] == node.outTensorIds[output]) return true;
  return false;
}

Status check_write(const atb::GraphParam& param, const atb::Node& node, size_t output,
                   bool assigned) {
  const std::string what = "output " + std::to_string(output) + " is " +
                           tensor_text(param, node.outTensorIds[output]);
  const Signature* signature = signature_of(node);
  const bool same = in_place(node, output);
  if (signature != nullptr && signature->outputs[output].in_place && !same)
    return refuse(what + "; it has to be the tensor of input " +
                  std::to_string(signature->outputs[output].may_be[0]) + ", " +
                  tensor_text(param, node.inTensorIds[signature->outputs[output].may_be[0]]));
  for (uint32_t id : node.inTensorIds)
    if (id == node.outTensorIds[output] && !same)
      return refuse(what + ", which is an input too; this operation cannot write it in place");
  if (assigned && !same) return refuse(what + ", which has a value already");
  return atb::NO_ERROR;
}

Status check_writes(const atb::GraphParam& param, const atb::Node& node,
                    std::vector<bool>& assigned) {
  std::set<uint32_t> written;
  for (size_t i = 0; i < node.outTensorIds.size(); ++i) {
    const uint32_t id = node.outTensorIds[i];
    if (!written.insert(id).second)
      return refuse("writes " + tensor_text(param, id) + " twice");
    const Status status = check_write(param, node, i, assigned[id]);
    if (status != atb::NO_ERROR) return status;
  }
  for (uint32_t id : node.outTensorIds) assigned[id] = true;
  return atb::NO_ERROR;
}

Status check_node(const atb::GraphParam& param, const atb::Node& node,
                  std::vector<bool>& assigned) {
  Status status = check_arity(node);
  if (status == atb::NO_ERROR) status = check_ids(param, node);
  if (status == atb::NO_ERROR) status = check_reads(param, node, assigned);
  if (status == atb::NO_ERROR) status = check_writes(param, node, assigned);
  return status;
}

}  // namespace

std::string tensor_text(const atb::GraphParam& param, uint32_t id) {
  const uint32_t outputs = param.inTensorNum, internals = outputs + param.outTensorNum;
  const std::string kind = id < outputs     ? "input " + std::to_string(id)
                           : id < internals ? "output " + std::to_string(id - outputs)
                                            : "internal " + std::to_string(id - internals);
  return "tensor " + std::to_string(id) + " (" + kind + ")";
}

Status check_graph(const atb::GraphParam& param) {
  Status status = check_limits(param);
  if (status != atb::NO_ERROR) return status;
  const uint32_t count = param.inTensorNum + param.outTensorNum + param.internalTensorNum;
  std::vector<bool> assigned(count, false);
  std::fill_n(assigned.begin(), param.inTensorNum, true);
  std::set<const atb::Operation*> operations;
  for (size_t i = 0; i < param.nodes.size(); ++i) {
    const atb::Node& node = param.nodes[i];
    if (node.operation == nullptr) return refuse(node_text(node, i) + " has no operation");
    if (!operations.insert(node.operation).second)
      return refuse(node_text(node, i) + " has the operation of a node before");
    status = check_node(param, node, assigned);
    if (status != atb::NO_ERROR) return within(node_text(node, i) + ": ", status);
  }
  for (uint32_t id = 0; id < count; ++id)
    if (!assigned[id]) return refuse(tensor_text(param, id) + " is never written");
  return atb::NO_ERROR;
}

}  // namespace emulation
