// Which phase a step runs, by the positions of its tokens.
#pragma once
#include <cstring>

#include "prepared.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

struct RunSpec {
  uint32_t graph;
  std::vector<uint32_t> bound;  // tensors of the program: the graph's inputs, then its outputs
};

struct PhaseSpec {
  const char* name;
  std::vector<uint32_t> prepared;
  std::vector<RunSpec> runs;
};

// Whether every sequence starts here: positions 0, 1, ... and then only padding.
inline bool IsPrefill(const HostInput& positions, Call call) {
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int32_t* row = positions.values() + s * call.tokens;
    int64_t valid = 0;
    while (valid < call.tokens && row[valid] == valid) ++valid;
    for (int64_t t = valid; t < call.tokens; ++t) {
      if (row[t] != -1) return false;
    }
  }
  return true;
}

// A contiguous cache takes the tokens of a sequence behind its past, one after another.
inline void CheckContiguous(const HostInput& positions, Call call) {
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int32_t* row = positions.values() + s * call.tokens;
    for (int64_t t = 0; t < call.tokens; ++t) {
      if (row[t] >= 0 && row[t] == row[0] + t) continue;
      const std::string wanted = row[0] < 0 ? "a token" : std::to_string(row[0] + t);
      throw Error(std::string(positions.spec->name) + " of sequence " + std::to_string(s) +
                  " holds " + std::to_string(row[t]) + " at token " + std::to_string(t) +
                  ", wanted " + wanted + ": a contiguous cache on ascend takes the tokens of a "
                  "sequence in order, without padding\n  hint: build it with "
                  "--pass kv_layout:policy=paged");
    }
  }
}

inline const PhaseSpec* Named(const std::vector<PhaseSpec>& phases, const char* name) {
  for (const PhaseSpec& phase : phases) {
    if (std::strcmp(phase.name, name) == 0) return &phase;
  }
  return nullptr;
}

// The phase for these positions. Raises Error where there is none.
inline const PhaseSpec& Choose(const std::vector<PhaseSpec>& phases,
                               const std::vector<HostInput>& positions, Call call) {
  if (const PhaseSpec* contiguous = Named(phases, "contiguous")) {
    for (const HostInput& input : positions) CheckContiguous(input, call);
    return *contiguous;
  }
  const PhaseSpec *prefill = Named(phases, "prefill"), *decode = Named(phases, "decode");
  for (const HostInput& input : positions) {
    if (prefill && IsPrefill(input, call)) continue;
    if (decode) return *decode;
    throw Error(std::string(input.spec->name) +
                " have to be 0, 1, ... for every sequence, then -1 for padding: this library has "
                "no graph for tokens behind others");
  }
  return prefill ? *prefill : *decode;
}

}  // namespace gdsl
