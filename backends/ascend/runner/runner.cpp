// The C functions of a library, over the tables that the generated file gives. It is compiled by
// itself: it is the same in every library.
#include "abi.h"
#include "plan.hpp"
#include "weights.hpp"

// The manifest is an object of its own, for it says what the library was built for.
extern "C" const char gdsl_manifest_text[];

namespace gdsl __attribute__((visibility("hidden"))) {

// The session of this thread: its plans share operations and memory, and the last one ends it.
inline std::shared_ptr<Session> SharedSession() {
  thread_local std::weak_ptr<Session> current;
  std::shared_ptr<Session> session = current.lock();
  if (!session) {
    session = std::make_shared<Session>(TheProgram());
    current = session;
  }
  return session;
}

// 0, or 1 with the text of what was thrown in LastError(): nothing is thrown through C.
template <class Work>
int Guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    LastError() = TheProgram().name + std::string(": ") + error.what();
    return 1;
  }
}

// A param as it is for any sizes: its shape has no dims.
inline TensorSpec ParamSpec(int param) {
  const Program& program = TheProgram();
  if (param < 0 || static_cast<uint32_t>(param) >= program.params) {
    throw Error("no such param: " + std::to_string(param));
  }
  const std::vector<int64_t> ones(program.dims, 1);
  return program.sizes(ones.data()).tensors[program.first_param + static_cast<uint32_t>(param)];
}

// What C holds is our plan; its own type has no members.
inline Plan& PlanOf(gdsl_plan* plan) { return *reinterpret_cast<Plan*>(plan); }

}  // namespace gdsl

extern "C" {
int gdsl_abi_version(void) { return GDSL_ABI_VERSION; }
const char* gdsl_manifest(void) { return gdsl_manifest_text; }
const char* gdsl_last_error(void) { return gdsl::LastError().c_str(); }

// The runner allocates what it needs on the device.
int64_t gdsl_workspace_bytes(const int64_t*, int) { return 0; }
int64_t gdsl_workspace_lower_bound(const int64_t*, int) { return 0; }

int gdsl_plan_create(void* const* pointers, const int64_t* dims, int, void*, gdsl_plan** out) {
  return gdsl::Guarded([&] {
    const gdsl::Program& program = gdsl::TheProgram();
    auto made = std::make_unique<gdsl::Plan>(program, dims, gdsl::SharedSession());
    for (uint32_t i = 0; i < program.ports; ++i) made->Bind(i, pointers[i]);
    *out = reinterpret_cast<gdsl_plan*>(made.release());
  });
}
int gdsl_plan_rebind(gdsl_plan* plan, int index, void* pointer) {
  return gdsl::Guarded([&] { gdsl::PlanOf(plan).Bind(static_cast<uint32_t>(index), pointer); });
}
int gdsl_step(gdsl_plan* plan, void* stream) {
  return gdsl::Guarded([&] { gdsl::PlanOf(plan).Step(stream); });
}
int gdsl_plan_destroy(gdsl_plan* plan) {
  delete &gdsl::PlanOf(plan);
  return 0;
}

int64_t gdsl_packed_bytes(int param) {
  int64_t bytes = -1;
  gdsl::Guarded([&] { bytes = gdsl::PackedBytes(gdsl::ParamSpec(param)); });
  return bytes;
}
int gdsl_pack(int param, const void* source, void* target) {
  return gdsl::Guarded([&] {
    const gdsl::TensorSpec spec = gdsl::ParamSpec(param);
    if (gdsl::PackedBytes(spec) == 0) {
      throw gdsl::Error(std::string("param ") + spec.name + " is read as it is");
    }
    gdsl::PackTiles(spec, source, target);
  });
}
}
