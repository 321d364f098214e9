// Builds one ATB graph. What the builder does is in graph_build.hpp, which runner.cpp alone
// compiles: files of graphs are many.
#pragma once
#include <acl/acl.h>
#include <atb/atb_infer.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace gdsl __attribute__((visibility("hidden"))) {

// In a view: as many as are left of the elements.
constexpr int64_t REST = -1;

// An input of a node: a tensor of the graph, and the shape in which the node sees it, if another.
struct Input {
  Input(uint32_t tensor) : id(tensor) {}  // a plain tensor is an input
  Input(uint32_t tensor, std::initializer_list<int64_t> shape) : id(tensor) {
    for (const int64_t size : shape) view[rank++] = size;
  }
  uint32_t id;
  uint32_t rank = 0;
  int64_t view[8] = {};
};

inline Input View(uint32_t tensor, std::initializer_list<int64_t> shape) { return {tensor, shape}; }

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
};

class GraphBuilder {
 public:
  GraphBuilder(const char* name, std::initializer_list<const char*> tensors, uint32_t inputs,
               uint32_t outputs);
  GraphBuilder(const GraphBuilder&) = delete;
  GraphBuilder& operator=(const GraphBuilder&) = delete;
  // ATB takes the operations over when the graph is created; until then they are ours.
  ~GraphBuilder();

  // Adds a node; the first that ATB refuses ends it, and Create says so.
  template <class Param>
  void Add(const char* op, const char* line, const Param& param,
           std::initializer_list<Input> inputs, std::initializer_list<uint32_t> outputs) {
    if (status_ != atb::NO_ERROR) return;
    atb::Operation* operation = nullptr;
    status_ = atb::CreateOperation(param, &operation);
    Keep({op, line, operation, inputs, outputs});
  }

  // The operation of the whole graph; LastError() has the reason where the status is an error.
  atb::Status Create(atb::Operation** operation, GraphNotes* notes);

 private:
  void Keep(const NodeNote& node);

  atb::GraphParam graph_;
  GraphNotes notes_;
  atb::Status status_ = atb::NO_ERROR;
};

}  // namespace gdsl
