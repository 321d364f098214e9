// A generated library: its functions, found by name.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "abi.h"

class Library {
 public:
  explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error(dlerror());
    const auto version = symbol<decltype(&gdsl_abi_version)>("gdsl_abi_version")();
    if (version != GDSL_ABI_VERSION) {
      throw std::runtime_error(path + " has ABI version " + std::to_string(version) + ", wanted " +
                               std::to_string(GDSL_ABI_VERSION));
    }
    manifest = symbol<decltype(&gdsl_manifest)>("gdsl_manifest");
    last_error = symbol<decltype(&gdsl_last_error)>("gdsl_last_error");
    workspace_bytes = symbol<decltype(&gdsl_workspace_bytes)>("gdsl_workspace_bytes");
    lower_bound = symbol<decltype(&gdsl_workspace_lower_bound)>("gdsl_workspace_lower_bound");
    plan_create = symbol<decltype(&gdsl_plan_create)>("gdsl_plan_create");
    plan_rebind = symbol<decltype(&gdsl_plan_rebind)>("gdsl_plan_rebind");
    step = symbol<decltype(&gdsl_step)>("gdsl_step");
    plan_destroy = symbol<decltype(&gdsl_plan_destroy)>("gdsl_plan_destroy");
    packed_bytes = symbol<decltype(&gdsl_packed_bytes)>("gdsl_packed_bytes");
    pack = symbol<decltype(&gdsl_pack)>("gdsl_pack");
    times = reinterpret_cast<decltype(&gdsl_times)>(dlsym(handle_, "gdsl_times"));
    plan_exchanger =
        reinterpret_cast<decltype(&gdsl_plan_exchanger)>(dlsym(handle_, "gdsl_plan_exchanger"));
  }
  // A library stays loaded: its OpenMP threads may outlive the last plan.
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  void check(int code) const {
    if (code != 0) throw std::runtime_error(last_error());
  }

  decltype(&gdsl_manifest) manifest;
  decltype(&gdsl_last_error) last_error;
  decltype(&gdsl_workspace_bytes) workspace_bytes;
  decltype(&gdsl_workspace_lower_bound) lower_bound;
  decltype(&gdsl_plan_create) plan_create;
  decltype(&gdsl_plan_rebind) plan_rebind;
  decltype(&gdsl_step) step;
  decltype(&gdsl_plan_destroy) plan_destroy;
  decltype(&gdsl_packed_bytes) packed_bytes;
  decltype(&gdsl_pack) pack;
  decltype(&gdsl_times) times;  // null but for builds that measure
  decltype(&gdsl_plan_exchanger) plan_exchanger;  // null but for builds for one rank of several

 private:
  template <class Function>
  Function symbol(const char* name) {
    void* found = dlsym(handle_, name);
    if (!found) throw std::runtime_error(std::string("the library lacks ") + name);
    return reinterpret_cast<Function>(found);
  }
  void* handle_;
};
