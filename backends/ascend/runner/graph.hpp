// Builds one ATB graph, and says which node is to blame when ATB refuses it.
#pragma once
#include <initializer_list>
#include <utility>

#include "message.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

// In a view: as many as are left of the elements.
constexpr int64_t REST = -1;

// An input of a node: a tensor of the graph, and the shape in which the node sees it, if another.
struct Input {
  Input(uint32_t tensor) : id(tensor) {}  // NOLINT: a plain tensor is an input
  Input(uint32_t tensor, std::initializer_list<int64_t> shape) : id(tensor), view(shape) {}
  uint32_t id;
  std::vector<int64_t> view;
};

inline Input View(uint32_t tensor, std::initializer_list<int64_t> shape) { return {tensor, shape}; }

// ATB calls it with a shape whose dimNum is 0.
inline void Reshape(const std::vector<int64_t>& view, const atb::Dims& from, atb::Dims& to) {
  int64_t left = 1;
  for (uint64_t i = 0; i < from.dimNum; ++i) left *= from.dims[i];
  for (const int64_t size : view) left = size == REST ? left : left / size;
  to.dimNum = view.size();
  for (size_t i = 0; i < view.size(); ++i) to.dims[i] = view[i] == REST ? left : view[i];
}

// A node as messages name it. The graph owns the operation.
struct NodeNote {
  const char* op;
  const char* line;
  atb::Operation* operation;
  std::vector<Input> inputs;
  std::vector<uint32_t> outputs;
};

// What is known of a graph beyond ATB's own object: for messages.
struct GraphNotes {
  std::string name;
  std::vector<const char*> tensors;  // "x: f16[rows, 64]", by id
  uint32_t inputs = 0;
  std::vector<NodeNote> nodes;

  std::string Where(size_t node) const {
    const NodeNote& note = nodes[node];
    return name + ": node " + std::to_string(node) + ", " + note.op + " (" + note.line + ")";
  }
  std::string Declared(size_t node) const {
    std::string text;
    for (const Input& input : nodes[node].inputs) {
      text += (text.empty() ? "" : ", ") + std::string(tensors[input.id]);
    }
    return text;
  }
};

class GraphBuilder {
 public:
  GraphBuilder(const char* name, std::initializer_list<const char*> tensors, uint32_t inputs,
               uint32_t outputs) {
    graph_.name = name;
    graph_.inTensorNum = inputs;
    graph_.outTensorNum = outputs;
    graph_.internalTensorNum = static_cast<uint32_t>(tensors.size()) - inputs - outputs;
    notes_ = {name, tensors, inputs, {}};
  }
  GraphBuilder(const GraphBuilder&) = delete;
  GraphBuilder& operator=(const GraphBuilder&) = delete;
  // ATB takes the operations over when the graph is created; until then they are ours.
  ~GraphBuilder() {
    for (const atb::Node& node : graph_.nodes) atb::DestroyOperation(node.operation);
  }

  // Adds a node; the first that ATB refuses ends it, and Create says so.
  template <class Param>
  void Add(const char* op, const char* line, const Param& param,
           std::initializer_list<Input> inputs, std::initializer_list<uint32_t> outputs) {
    if (status_ != atb::NO_ERROR) return;
    atb::Node node;
    status_ = atb::CreateOperation(param, &node.operation);
    notes_.nodes.push_back({op, line, node.operation, inputs, outputs});
    if (status_ != atb::NO_ERROR) {
      const size_t last = notes_.nodes.size() - 1;
      LastError() = notes_.Where(last) + " of " + notes_.Declared(last) +
                    " cannot be made: ATB error " + StatusText(status_) + LogText();
      return;
    }
    Connect(node, inputs, outputs);
    graph_.nodes.push_back(std::move(node));
  }

  // The operation of the whole graph; LastError() has the reason where the status is an error.
  atb::Status Create(atb::Operation** operation, GraphNotes* notes) {
    if (status_ != atb::NO_ERROR) return status_;
    status_ = atb::CreateOperation(graph_, operation);
    if (status_ != atb::NO_ERROR) {
      LastError() = notes_.name + ": ATB refuses the graph: error " + StatusText(status_) +
                    LogText();
      return status_;
    }
    graph_.nodes.clear();
    if (notes) *notes = std::move(notes_);
    return status_;
  }

 private:
  static void Connect(atb::Node& node, std::initializer_list<Input> inputs,
                      std::initializer_list<uint32_t> outputs) {
    bool reshaped = false;
    for (const Input& input : inputs) {
      node.inTensorIds.push_back(input.id);
      reshaped = reshaped || !input.view.empty();
    }
    for (const uint32_t output : outputs) node.outTensorIds.push_back(output);
    if (!reshaped) return;
    for (const Input& input : inputs) {
      atb::ReshapeFunc function;
      if (!input.view.empty()) {
        function = [view = input.view](const atb::Dims& from, atb::Dims& to) {
          Reshape(view, from, to);
        };
      }
      node.inTensorReshapeFuncs.push_back(function);
    }
  }

  atb::GraphParam graph_;
  GraphNotes notes_;
  atb::Status status_ = atb::NO_ERROR;
};

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
      if (!input.view.empty()) Reshape(input.view, known[input.id].shape, desc.shape);
      in.push_back(desc);
      const std::string declared = notes.tensors[input.id];
      found += (found.empty() ? "" : ", ") + declared.substr(0, declared.find(':')) + " " +
               DescText(desc);
    }
    const atb::Status status = node.operation->InferShape(in, out);
    if (status != atb::NO_ERROR) {
      return notes.Where(i) + " refuses " + found + ": ATB error " + StatusText(status);
    }
    for (size_t o = 0; o < node.outputs.size() && o < out.size(); ++o) {
      known[node.outputs[o]] = out[o];
    }
  }
  return "";
}

}  // namespace gdsl
