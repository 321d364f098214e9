// Loads generated libraries, holds plans and runs them. Knows nothing of torch: tensors come as
// addresses that the Python side has checked against the manifest.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
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

using Addresses = std::vector<std::uintptr_t>;

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

// Numbers of input or state `port`, on the host, that kernels index with: `count` of them, in
// [low, high).
struct Range {
  std::size_t port;
  std::int64_t count, low, high;
};
using RangeTuple = std::tuple<std::size_t, std::int64_t, std::int64_t, std::int64_t>;

// A block table [sequences, pages] at port `table` that has to have a block for every slot up to
// the last position of each sequence.  Positions lie in `rows` of `count`, one a sequence, or one
// for all of them; where there are none (port -1) every page has to have a block.
struct Pages {
  std::int64_t positions, rows, count, table, sequences, pages, block;

  bool covered(const Addresses& addresses) const {
    const auto* blocks = numbers(addresses, table);
    for (std::int64_t i = 0; i < sequences; ++i) {
      const std::int64_t used = pages_in_use(addresses, rows == 1 ? 0 : i);
      for (std::int64_t page = 0; page < used; ++page) {
        if (blocks[i * pages + page] < 0) return false;
      }
    }
    return true;
  }

 private:
  static const std::int32_t* numbers(const Addresses& addresses,
                                     std::int64_t port) {
    return reinterpret_cast<const std::int32_t*>(addresses[static_cast<std::size_t>(port)]);
  }
  std::int64_t pages_in_use(const Addresses& addresses, std::int64_t row) const {
    if (positions < 0) return pages;
    const auto* first = numbers(addresses, positions) + row * count;
    const std::int64_t last = *std::max_element(first, first + count);
    return last < 0 ? 0 : std::min(last / block + 1, pages);
  }
};
using PagesTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                              std::int64_t, std::int64_t>;

// Where weights lie, read from Python once for all plans.
struct Params {
  explicit Params(Addresses all) : addresses(std::move(all)) {}
  const Addresses addresses;
};

// A weak reference to an object of Python, and whether an object is still that one.
class Weak {
 public:
  explicit Weak(const py::handle& object) : ref_(object) {}
  bool is(PyObject* object) const {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* found = nullptr;
    PyWeakref_GetRef(ref_.ptr(), &found);
    Py_XDECREF(found);
    return found == object;
#else
    return PyWeakref_GetObject(ref_.ptr()) == object;
#endif
  }

 private:
  py::weakref ref_;
};

// The tensors of a call that were found to fit, by weak reference, and where they lie. What is asked
// of them again is little, for after a step they are not in the processor's caches.
class Held {
 public:
  // The tensors of a state, under their names; inputs, and results that the caller has given. The
  // addresses are those of the inputs, the state and the results. `data_ptr` tells one.
  Held(py::tuple names, const py::tuple& inputs, const py::tuple& state, const py::tuple& results,
       Addresses all, py::function data_ptr)
      : addresses(std::move(all)),
        inputs(inputs.size()),
        states(state.size()),
        names_(std::move(names)),
        data_ptr_(std::move(data_ptr)) {
    for (const auto& part : {inputs, state, results}) {
      for (const py::handle& tensor : part) tensors_.emplace_back(tensor);
    }
    if (tensors_.size() != addresses.size() || names_.size() != states) {
      throw std::invalid_argument("another number of tensors");
    }
  }

  // Whether a dict has these very tensors in this order, under the same names, at the very places.
  // Equal names that are other objects are not known again, which costs time and nothing else.
  bool same_state(const py::dict& state) const {
    if (state.size() != states) return false;
    PyObject *name = nullptr, *tensor = nullptr;
    Py_ssize_t position = 0;
    for (std::size_t i = 0; PyDict_Next(state.ptr(), &position, &name, &tensor); ++i) {
      if (name != PyTuple_GET_ITEM(names_.ptr(), static_cast<Py_ssize_t>(i))) return false;
      if (!same(inputs + i, tensor)) return false;
    }
    return true;
  }

  // The same of inputs and results, if results were given.
  bool same_rest(const py::tuple& given, const py::sequence& results) const {
    const std::size_t count = results.size();
    if (given.size() != inputs || count != addresses.size() - inputs - states) return false;
    for (std::size_t i = 0; i < inputs; ++i) {
      if (!same(i, given[i].ptr())) return false;
    }
    for (std::size_t i = 0; i < count; ++i) {
      const py::object result = results[i];
      if (!same(inputs + states + i, result.ptr())) return false;
    }
    return count > 0;
  }

  const Addresses addresses;
  const std::size_t inputs, states;

 private:
  bool same(std::size_t i, PyObject* tensor) const {
    if (!tensors_[i].is(tensor)) return false;
    auto* told = PyObject_CallOneArg(data_ptr_.ptr(), tensor);
    if (!told) throw py::error_already_set();
    return py::reinterpret_steal<py::int_>(told).cast<std::uintptr_t>() == addresses[i];
  }

  py::tuple names_;
  py::function data_ptr_;
  std::vector<Weak> tensors_;
};

using CallTime = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

// The pointer table holds `given` inputs and states, then params, then results.
class Plan {
 public:
  Plan(std::shared_ptr<Library> library, const std::vector<std::int64_t>& dims, int threads,
       std::uintptr_t workspace, std::size_t given, std::size_t params, std::size_t results,
       const std::vector<RangeTuple>& ranges, const std::vector<PagesTuple>& pages)
      : library_(std::move(library)),
        given_(given),
        params_(params),
        results_(results),
        addresses_(given + results) {
    for (const auto& [port, count, low, high] : ranges) {
      if (port >= given) throw std::out_of_range("no such input in the plan");
      ranges_.push_back({port, count, low, high});
    }
    const auto is_port = [&](std::int64_t port) {
      return port >= 0 && static_cast<std::size_t>(port) < given;
    };
    for (const auto& [positions, rows, count, table, sequences, per_sequence, block] : pages) {
      if (!is_port(table) || (positions != -1 && !is_port(positions))) {
        throw std::out_of_range("no such tensor in the plan");
      }
      pages_.push_back({positions, rows, count, table, sequences, per_sequence, block});
    }
    const std::vector<void*> table(given + params + results + 1);
    library_->check(
        library_->plan_create(table.data(), dims.data(), threads, pointer(workspace), &plan_));
  }
  ~Plan() { library_->plan_destroy(plan_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void bind(const Params& params) {
    if (params.addresses.size() != params_) {
      throw std::invalid_argument("another number of params");
    }
    for (std::size_t i = 0; i < params_; ++i) rebind(given_ + i, params.addresses[i]);
    bound_ = true;
  }

  // What the collectives of this rank call: exchange(kind, dtype, source, target, outer, inner).
  void connect(py::function exchange) {
    if (!library_->plan_exchanger) throw std::logic_error("this build is for one process");
    exchange_ = std::move(exchange);
  }

  // Runs on these inputs, states and results; false, and nothing done, where an index is out of
  // range or a page is missing. The caller's other threads go on meanwhile. On a stream the step
  // may still run when this returns; without one (0) it is done.
  bool step(const Addresses& addresses, std::uintptr_t stream) {
    if (addresses.size() != given_ + results_) {
      throw std::invalid_argument("another number of tensors");
    }
    std::copy(addresses.begin(), addresses.end(), addresses_.begin());
    return run(stream);
  }

  // The same on inputs and results, with a state that was found to fit this plan; without them, on
  // those that were held with it.
  bool step_held(const Held& held, const Addresses& addresses) {
    const bool all = addresses.empty() && held.addresses.size() == given_ + results_;
    const std::size_t wanted = held.inputs + results_;
    if (held.inputs + held.states != given_ || (!all && addresses.size() != wanted)) {
      throw std::invalid_argument("another number of tensors");
    }
    const auto held_end = held.addresses.begin() + signed_size(all ? given_ + results_ : given_);
    std::copy(held.addresses.begin(), held_end, addresses_.begin());
    if (!all) {
      const auto results = addresses.begin() + signed_size(held.inputs);
      std::copy(addresses.begin(), results, addresses_.begin());
      std::copy(results, addresses.end(), addresses_.begin() + signed_size(given_));
    }
    return run(0);
  }

  // Nanoseconds, turns and nanoseconds of waiting of every call in the last step.
  std::vector<CallTime> times() const {
    if (!library_->times) throw std::logic_error("this build does not measure its calls");
    const std::int64_t* found = nullptr;
    const auto count = library_->times(plan_, &found);
    std::vector<CallTime> all;
    for (std::int64_t i = 0; i < count; ++i, found += 3) {
      all.emplace_back(found[0], found[1], found[2]);
    }
    return all;
  }

 private:
  static std::ptrdiff_t signed_size(std::size_t n) { return static_cast<std::ptrdiff_t>(n); }
  // Called on the thread that called step.  What Python raises is kept until the step is over.
  static int run_exchange(void* context, const gdsl_exchange* what) {
    auto* plan = static_cast<Plan*>(context);
    const py::gil_scoped_acquire acquire;
    try {
      plan->exchange_(what->kind, what->dtype, reinterpret_cast<std::uintptr_t>(what->source),
                      reinterpret_cast<std::uintptr_t>(what->target), what->outer, what->inner);
      return 0;
    } catch (py::error_already_set& error) {
      plan->raised_ = std::make_unique<py::error_already_set>(error);
      return 1;
    }
  }
  static bool in_range(const Range& range, const std::int32_t* numbers) {
    for (std::int64_t i = 0; i < range.count; ++i) {
      if (numbers[i] < range.low || numbers[i] >= range.high) return false;
    }
    return true;
  }
  bool run(std::uintptr_t stream) {
    if (!bound_ && params_ > 0) throw std::logic_error("the plan has no params yet");
    if (!run_released(stream)) return false;
    if (raised_) {
      auto raised = std::move(raised_);
      raised_.reset();
      raised->restore();
      throw py::error_already_set();
    }
    return true;
  }
  bool run_released(std::uintptr_t stream) {
    const py::gil_scoped_release release;
    for (const Range& range : ranges_) {
      if (!in_range(range, reinterpret_cast<const std::int32_t*>(addresses_[range.port]))) {
        return false;
      }
    }
    for (const Pages& pages : pages_) {
      if (!pages.covered(addresses_)) return false;
    }
    for (std::size_t i = 0; i < given_; ++i) rebind(i, addresses_[i]);
    for (std::size_t i = given_; i < addresses_.size(); ++i) rebind(params_ + i, addresses_[i]);
    if (exchange_) library_->check(library_->plan_exchanger(plan_, &Plan::run_exchange, this));
    const int code = library_->step(plan_, pointer(stream));
    if (!raised_) library_->check(code);
    return true;
  }
  void rebind(std::size_t index, std::uintptr_t address) {
    library_->check(library_->plan_rebind(plan_, static_cast<int>(index), pointer(address)));
  }

  std::shared_ptr<Library> library_;
  std::size_t given_, params_, results_;
  std::vector<Range> ranges_;
  std::vector<Pages> pages_;
  Addresses addresses_;  // of inputs, states and results in a step
  bool bound_ = false;
  py::object exchange_;
  std::unique_ptr<py::error_already_set> raised_;
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
      })
      .def("pack_quantised",
           [](const Library& l, int param, std::uintptr_t values, std::uintptr_t scales,
              std::uintptr_t offsets, std::uintptr_t target) {
             const py::gil_scoped_release release;
             const gdsl_quantised source{static_cast<const std::int8_t*>(pointer(values)),
                                         static_cast<const float*>(pointer(scales)),
                                         static_cast<const float*>(pointer(offsets))};
             l.check(l.pack(param, &source, pointer(target)));
           });
  py::class_<Params>(m, "Addresses").def(py::init<Addresses>());
  py::class_<Held>(m, "Held")
      .def(py::init<py::tuple, const py::tuple&, const py::tuple&, const py::tuple&, Addresses,
                    py::function>())
      .def("same_state", &Held::same_state)
      .def("same_rest", &Held::same_rest);
  py::class_<Plan>(m, "Plan")
      .def(py::init<std::shared_ptr<Library>, const std::vector<std::int64_t>&, int,
                    std::uintptr_t, std::size_t, std::size_t, std::size_t,
                    const std::vector<RangeTuple>&, const std::vector<PagesTuple>&>())
      .def("bind", &Plan::bind)
      .def("connect", &Plan::connect)
      .def("step", &Plan::step, py::arg("addresses"), py::arg("stream") = 0)
      .def("step_held", &Plan::step_held)
      .def("times", &Plan::times);
}
