// Parts of the runner behind C functions, for test_runner_host.py.
#include "phase.hpp"

extern "C" {

const char* gdsl_runtime_log() { return ""; }
const char* last_error() { return gdsl::LastError().c_str(); }

// Positions, or ids, are `count` in number, the table is [sequences, pages]; every kind reads what
// it needs.
int fill(int kind, const int32_t* positions, int64_t count, const int32_t* table,
         const int64_t* call, int64_t pages, int64_t block, int64_t window, int64_t limit, int dtype, int format,
         const int64_t* shape, int rank, void* out) {
  const gdsl::Call sizes{call[0], call[1]};
  const gdsl::TensorSpec rows{"positions", ACL_INT32, ACL_FORMAT_ND, {count}};
  const gdsl::TensorSpec blocks{"block_table", ACL_INT32, ACL_FORMAT_ND, {call[0], pages}};
  const gdsl::PreparedSpec spec{static_cast<gdsl::Kind>(kind), 0, {}, block, window, limit};
  const gdsl::TensorSpec tensor{"made", static_cast<aclDataType>(dtype),
                                static_cast<aclFormat>(format), {shape, shape + rank}};
  std::vector<gdsl::HostInput> of;
  if (positions) of.push_back({&rows, positions});
  if (table) of.push_back({&blocks, table});
  try {
    const gdsl::Values values = gdsl::Compute(spec, tensor, of, sizes);
    std::memcpy(out, values.data(), values.bytes());
    return 0;
  } catch (const gdsl::Error& error) {
    gdsl::LastError() = error.what();
    return 1;
  }
}

// The phase of `names`, divided by spaces, that positions choose; nullptr where there is none.
const char* choose(const char* names, const int32_t* positions, const int64_t* call) {
  static std::vector<std::string> owned;
  owned.clear();
  std::string word;
  for (const char* at = names;; ++at) {
    if (*at && *at != ' ') {
      word += *at;
    } else {
      owned.push_back(word);
      word.clear();
      if (!*at) break;
    }
  }
  static std::vector<gdsl::PhaseSpec> phases;
  phases.clear();
  for (const std::string& name : owned) phases.push_back({name.c_str(), {}, {}});
  const gdsl::TensorSpec rows{"positions", ACL_INT32, ACL_FORMAT_ND, {call[0] * call[1]}};
  std::vector<gdsl::HostInput> inputs;
  if (positions) inputs.push_back({&rows, positions});
  try {
    return gdsl::Choose(phases, inputs, {call[0], call[1]}).name;
  } catch (const gdsl::Error& error) {
    gdsl::LastError() = error.what();
    return nullptr;
  }
}
}
