// What a generated library is: the tables that its one generated file fills in.
#pragma once
#include "graph.hpp"
#include "phase.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

struct GraphSpec {
  const char* name;
  atb::Status (*create)(atb::Operation** operation, GraphNotes* notes);
  uint32_t inputs;
  std::vector<uint32_t> host;  // inputs whose values ATB reads on the host when it sets up
};

// All tensors of the program for the sizes of a plan: the pointer table, then prepared ones, then
// kept ones.
struct Sizes {
  std::vector<TensorSpec> tensors;
  int64_t sequences;
  int64_t rows;
};

struct Program {
  const char* name;
  Sizes (*sizes)(const int64_t* dims);
  uint32_t dims;  // of the manifest
  uint32_t ports;
  uint32_t first_param;
  uint32_t params;
  std::vector<uint32_t> positions;
  std::vector<PreparedSpec> prepared;
  uint32_t first_kept;
  std::vector<uint32_t> places;  // of kept tensors: those in one place are never alive together
  std::vector<GraphSpec> graphs;
  std::vector<PhaseSpec> phases;
};

const Program& TheProgram();

}  // namespace gdsl
