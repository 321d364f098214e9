// How a graph is built, and which node is to blame when ATB refuses it. runner.cpp alone includes
// this: what the files of graphs call is defined here.
#pragma once
#include <utility>

#include "graph.hpp"
#include "message.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

// ATB calls it with a shape whose dimNum is 0.
inline void Reshape(const Input& input, const atb::Dims& from, atb::Dims& to) {
  int64_t left = 1;
  for (uint64_t i = 0; i < from.dimNum; ++i) left *= from.dims[i];
  for (uint32_t i = 0; i < input.rank; ++i) {
    if (input.view[i] != REST) left /= input.view[i];
  }
  to.dimNum = input.rank;
  for (uint32_t i = 0; i < input.rank; ++i) {
    to.dims[i] = input.view[i] == REST ? left : input.view[i];
  }
}

inline std::string Where(const GraphNotes& notes, size_t node) {
  const NodeNote& note = notes.nodes[node];
  return notes.name + ": node " + std::to_string(node) + ", " + note.op + " (" + note.line + ")";
}

// The name of a tensor alone.
inline std::string NameOf(const GraphNotes& notes, size_t tensor) {
  const std::string declared = notes.tensors[tensor];
  return declared.substr(0, declared.find(':'));
}

inline std::string Declared(const GraphNotes& notes, const NodeNote& node) {
  std::string text;
  for (const Input& input : node.inputs) {
    text += (text.empty() ? "" : ", ") + std::string(notes.tensors[input.id]);
  }
  return text;
}

GraphBuilder::GraphBuilder(const char* name, std::initializer_list<const char*> tensors,
                           uint32_t inputs, uint32_t outputs) {
  graph_.name = name;
  graph_.inTensorNum = inputs;
  graph_.outTensorNum = outputs;
  graph_.internalTensorNum = static_cast<uint32_t>(tensors.size()) - inputs - outputs;
  notes_ = {name, tensors, inputs, {}};
}

GraphBuilder::~GraphBuilder() {
  for (const atb::Node& node : graph_.nodes) atb::DestroyOperation(node.operation);
}

void GraphBuilder::Keep(const NodeNote& note) {
  notes_.nodes.push_back(note);
  if (status_ != atb::NO_ERROR) {
    LastError() = Where(notes_, notes_.nodes.size() - 1) + " of " + Declared(notes_, note) +
                  " cannot be made: ATB error " + StatusText(status_) + LogText();
    return;
  }
  atb::Node node;
  node.operation = note.operation;
  bool reshaped = false;
  for (const Input& input : note.inputs) {
    node.inTensorIds.push_back(input.id);
    reshaped = reshaped || input.rank > 0;
  }
  for (const uint32_t output : note.outputs) node.outTensorIds.push_back(output);
  for (size_t i = 0; reshaped && i < note.inputs.size(); ++i) {
    const Input& input = note.inputs[i];
    atb::ReshapeFunc function;
    if (input.rank > 0) {
      function = [input](const atb::Dims& from, atb::Dims& to) { Reshape(input, from, to); };
    }
    node.inTensorReshapeFuncs.push_back(function);
  }
  graph_.nodes.push_back(std::move(node));
}

atb::Status GraphBuilder::Create(atb::Operation** operation, GraphNotes* notes) {
  if (status_ != atb::NO_ERROR) return status_;
  status_ = atb::CreateOperation(graph_, operation);
  if (status_ != atb::NO_ERROR) {
    LastError() = notes_.name + ": ATB refuses the graph: error " + StatusText(status_) + LogText();
    return status_;
  }
  graph_.nodes.clear();
  if (notes) *notes = std::move(notes_);
  return status_;
}

// The first node that refuses the shapes it gets when the graph gets `inputs`, as a sentence; an
// empty string where it is no node's shapes.
inline std::string Culprit(const GraphNotes& notes, const atb::SVector<atb::TensorDesc>& inputs) {
  std::vector<atb::TensorDesc> known(notes.tensors.size());
  for (uint32_t i = 0; i < notes.inputs; ++i) known[i] = inputs[i];
  for (size_t i = 0; i < notes.nodes.size(); ++i) {
    const NodeNote& node = notes.nodes[i];
    atb::SVector<atb::TensorDesc> in, out;
    std::string found;
    for (const Input& input : node.inputs) {
      atb::TensorDesc desc = known[input.id];
      if (input.rank > 0) Reshape(input, known[input.id].shape, desc.shape);
      in.push_back(desc);
      found += (found.empty() ? "" : ", ") + NameOf(notes, input.id) + " " + DescText(desc);
    }
    const atb::Status status = node.operation->InferShape(in, out);
    if (status != atb::NO_ERROR) {
      return Where(notes, i) + " refuses " + found + ": ATB error " + StatusText(status);
    }
    for (size_t o = 0; o < node.outputs.size() && o < out.size(); ++o) {
      known[node.outputs[o]] = out[o];
    }
  }
  return "";
}

}  // namespace gdsl
