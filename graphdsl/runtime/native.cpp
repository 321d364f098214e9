// Loads generated libraries, holds plans and runs them. Knows nothing of torch: tensors come as
// addresses that the Python side has checked against the manifest.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"

namespace py = pybind11;

namespace {

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

 private:
  template <class Function>
  Function symbol(const char* name) {
    void* found = dlsym(handle_, name);
    if (!found) throw std::runtime_error(std::string("the library lacks ") + name);
    return reinterpret_cast<Function>(found);
  }
  void* handle_;
};

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

class Plan {
 public:
  Plan(std::shared_ptr<Library> library, const std::vector<std::uintptr_t>& addresses,
       const std::vector<std::int64_t>& dims, int threads, std::uintptr_t workspace)
      : library_(std::move(library)), count_(addresses.size()) {
    std::vector<void*> table;
    for (const auto address : addresses) table.push_back(pointer(address));
    library_->check(library_->plan_create(table.data(), dims.data(), threads, pointer(workspace),
                                          &plan_));
  }
  ~Plan() { library_->plan_destroy(plan_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void rebind(std::size_t index, std::uintptr_t address) {
    if (index >= count_) throw std::out_of_range("no such pointer in the plan");
    library_->check(library_->plan_rebind(plan_, static_cast<int>(index), pointer(address)));
  }

  // Rebinds table[first...] to `addresses`, then runs; the caller's other threads go on meanwhile.
  void step(const std::vector<std::pair<std::size_t, std::uintptr_t>>& bindings) {
    for (const auto& [index, address] : bindings) rebind(index, address);
    const py::gil_scoped_release release;
    library_->check(library_->step(plan_, nullptr));
  }

 private:
  std::shared_ptr<Library> library_;
  std::size_t count_;
  gdsl_plan* plan_ = nullptr;
};

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Generated libraries and their plans.";
  py::class_<Library, std::shared_ptr<Library>>(m, "Library")
      .def(py::init<const std::string&>())
      .def("manifest", [](const Library& l) { return std::string(l.manifest()); })
      .def("workspace_bytes",
           [](const Library& l, const std::vector<std::int64_t>& dims, int threads) {
             return l.workspace_bytes(dims.data(), threads);
           })
      .def("workspace_lower_bound",
           [](const Library& l, const std::vector<std::int64_t>& dims, int threads) {
             return l.lower_bound(dims.data(), threads);
           })
      .def("packed_bytes", [](const Library& l, int param) { return l.packed_bytes(param); })
      .def("pack", [](const Library& l, int param, std::uintptr_t source, std::uintptr_t target) {
        const py::gil_scoped_release release;
        l.check(l.pack(param, pointer(source), pointer(target)));
      });
  py::class_<Plan>(m, "Plan")
      .def(py::init<std::shared_ptr<Library>, const std::vector<std::uintptr_t>&,
                    const std::vector<std::int64_t>&, int, std::uintptr_t>())
      .def("rebind", &Plan::rebind)
      .def("step", &Plan::step);
}
