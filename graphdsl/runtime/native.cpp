// Loads generated libraries, holds plans and runs them. Knows nothing of torch: tensors come as
// addresses that the Python side has checked against the manifest.
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
#include "native_held.hpp"
#include "native_library.hpp"

namespace {

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
