// torch.classes.graphdsl.Operation: generated libraries behind the calling convention of ATB's
// OperationTorch. Python registers a build under a name; Operation(name).execute([...]) checks its
// tensors as the Python runtime does, and runs one plan.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/custom_class.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "torch_facts.hpp"

namespace graphdsl {
namespace {

constexpr std::size_t most_plans = 8;
// Where this was loaded: in any other process OpenMP's threads were lost in a fork.
const pid_t process = getpid();

template <class Function>
Function symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  TORCH_CHECK(found, "the library lacks ", name);
  return reinterpret_cast<Function>(found);
}

// A library and what Python knows of it; shared by all operations of its name, never changed.
struct Entry {
  std::string name;
  std::vector<Bound> dims;
  std::vector<Port> inputs, state, outputs;
  std::vector<PageCheck> pages;
  std::vector<at::Tensor> weights;
  decltype(&gdsl_workspace_bytes) workspace_bytes;
  decltype(&gdsl_plan_create) plan_create;
  decltype(&gdsl_plan_rebind) plan_rebind;
  decltype(&gdsl_step) step;
  decltype(&gdsl_plan_destroy) plan_destroy;
  decltype(&gdsl_last_error) last_error;

  Entry(const std::string& path, Reader reader, std::vector<at::Tensor> given)
      : name(reader.text()), dims(reader.bounds()), inputs(reader.ports()), state(reader.ports()),
        outputs(reader.ports()), pages(reader.page_checks()), weights(std::move(given)) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library, path, " does not load: ", dlerror());
    TORCH_CHECK(symbol<decltype(&gdsl_abi_version)>(library, "gdsl_abi_version")() ==
                    GDSL_ABI_VERSION, path, " has another ABI version");
    workspace_bytes = symbol<decltype(workspace_bytes)>(library, "gdsl_workspace_bytes");
    plan_create = symbol<decltype(plan_create)>(library, "gdsl_plan_create");
    plan_rebind = symbol<decltype(plan_rebind)>(library, "gdsl_plan_rebind");
    step = symbol<decltype(step)>(library, "gdsl_step");
    plan_destroy = symbol<decltype(plan_destroy)>(library, "gdsl_plan_destroy");
    last_error = symbol<decltype(last_error)>(library, "gdsl_last_error");
  }
  void check(int code) const { TORCH_CHECK(code == 0, name, ": ", last_error()); }
  const Port& port(std::size_t i) const {
    return i < inputs.size() ? inputs[i] : state[i - inputs.size()];
  }
};

// The last position of every sequence; -1 where there is none.
std::vector<std::int64_t> last_positions(const PageCheck& check,
                                         const std::vector<at::Tensor>& tensors) {
  const at::Tensor& table = tensors[check.table];
  const auto sequences = table.size(0);
  if (check.positions < 0) return Dims(sequences, table.size(1) * check.block - 1);
  const at::Tensor& positions = tensors[check.positions];
  const bool own = positions.dim() == 2 && positions.size(0) == sequences;
  const auto count = positions.numel() / (own ? sequences : 1);
  const auto* numbers = positions.const_data_ptr<std::int32_t>();
  Dims found;
  for (std::int64_t i = 0; i < sequences; ++i) {
    const auto* row = numbers + (own ? i * count : 0);
    found.push_back(*std::max_element(row, row + count));
  }
  return found;
}

void check_length(const Entry& entry, const PageCheck& check,
                  const std::vector<at::Tensor>& tensors) {
  const auto pages = tensors[check.table].size(1), end = pages * check.block;
  for (const auto position : last_positions(check, tensors)) {
    TORCH_CHECK(position < end, entry.name, ": ", entry.port(check.positions).name, " holds ",
                position, ", but ", entry.port(check.table).name, " has ", pages, " pages of ",
                check.block, " slots for a sequence, so that positions end at ", end - 1);
  }
}

void check_blocks(const Entry& entry, const PageCheck& check,
                  const std::vector<at::Tensor>& tensors) {
  const at::Tensor& table = tensors[check.table];
  const std::string& name = entry.port(check.table).name;
  const auto what = check.positions < 0 ? "slots" : entry.port(check.positions).name;
  const auto last = last_positions(check, tensors);
  for (std::int64_t i = 0; i < table.size(0); ++i) {
    const auto* row = table.const_data_ptr<std::int32_t>() + i * table.size(1);
    for (std::int64_t page = 0; page * check.block <= last[i]; ++page) {
      TORCH_CHECK(row[page] >= 0, entry.name, ": ", what, " of sequence ", i, " reach ",
                  last[i], ", but ", name, "[", i, ", ", page, "] is -1: slots ",
                  page * check.block, " to ", (page + 1) * check.block - 1, " have no block");
    }
  }
}

std::mutex table_mutex;
std::map<std::string, std::shared_ptr<const Entry>>& table() {
  static std::map<std::string, std::shared_ptr<const Entry>> entries;
  return entries;
}

void register_operation(const std::string& name, const std::string& library,
                        const std::vector<std::int64_t>& numbers,
                        const std::vector<std::string>& texts, std::vector<at::Tensor> weights) {
  auto entry = std::make_shared<const Entry>(library, Reader(numbers, texts), std::move(weights));
  const std::lock_guard<std::mutex> lock(table_mutex);
  table()[name] = std::move(entry);
}

std::shared_ptr<const Entry> find_entry(const std::string& name) {
  const std::lock_guard<std::mutex> lock(table_mutex);
  std::string known;
  for (const auto& item : table()) known += (known.empty() ? "" : ", ") + item.first;
  const auto found = table().find(name);
  TORCH_CHECK(found != table().end(), "no operation ", name, " is registered\n  hint: registered: ",
              known.empty() ? "none" : known);
  return found->second;
}

void check_tensor(const std::string& owner, const Port& port, const at::Tensor& tensor,
                  Dims& dims) {
  const std::string label = owner + ": " + port.name;
  TORCH_CHECK(tensor.defined(), label, " is None, wanted a tensor");
  TORCH_CHECK(tensor.device().is_cpu(), label, " is on ", tensor.device(), ", wanted the CPU");
  TORCH_CHECK(tensor.layout() == at::kStrided, label, " is ", tensor.layout(),
              ", wanted a dense tensor");
  TORCH_CHECK(tensor.scalar_type() == port.type, label, " is ", tensor.scalar_type(), ", wanted ",
              port.type);
  TORCH_CHECK(!(tensor.requires_grad() && at::GradMode::is_enabled()), label,
              " requires grad, and a built operator has no backward\n  hint: call it under "
              "torch.no_grad() or torch.inference_mode()");
  const auto found = tensor.sizes();
  TORCH_CHECK(found.size() == port.shape.size(), label, " has ", found.size(), " dims ", found,
              ", wanted ", port.wanted);
  for (std::size_t i = 0; i < found.size(); ++i) {
    port.shape[i].settle(found[i], dims);
    const auto wanted = port.shape[i].value(dims);
    TORCH_CHECK(found[i] == wanted, label, " is ", found, ", wanted ", port.wanted, ": size ", i,
                " is ", found[i], ", but it has to be ", wanted);
  }
  TORCH_CHECK(tensor.is_contiguous(), label, " is not contiguous\n  hint: ", port.name,
              ".contiguous()");
}

void check_dim(const std::string& owner, const Bound& bound, const Dims& dims, std::int64_t& dim) {
  if (bound.derived) {
    const auto value = bound.equals.value(dims);
    if (dim == unknown) dim = value;
    TORCH_CHECK(dim == value, owner, ": ", bound.name, " is ", dim, ", but ", bound.wanted, " is ",
                value);
  }
  if (dim == unknown) dim = bound.low;
  TORCH_CHECK(bound.low <= dim && dim < bound.high + bound.step, owner, ": ", bound.name, " is ",
              dim, ", wanted ", bound.low, " to ", bound.high);
}

void check_range(const std::string& owner, const Port& port, const at::Tensor& tensor,
                 const Dims& dims) {
  for (const auto& [lowest, end] : port.ranges) {
    const auto low = lowest.value(dims), high = end.value(dims);
    const auto* numbers = tensor.const_data_ptr<std::int32_t>();
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      TORCH_CHECK(numbers[i] >= low && numbers[i] < high, owner, ": ", port.name, " holds ",
                  numbers[i], ", wanted ", low, " to ", high - 1);
    }
  }
}

}  // namespace

// One plan for every combination of sizes, on one workspace that grows. Calls on one Operation wait
// for each other; threads that are to run at once have one each.
class Operation : public torch::CustomClassHolder {
 public:
  explicit Operation(const std::string& name) : entry_(find_entry(name)) {}
  ~Operation() override { drop_plans(); }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  // `tensors` are the inputs, then the state, which is changed in place; gives the results.
  std::vector<at::Tensor> execute(const std::vector<at::Tensor>& tensors) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Dims dims = check(tensors);
    std::vector<at::Tensor> results;
    for (const Port& port : entry_->outputs) {
      results.push_back(at::empty(port.sizes(dims), at::TensorOptions().dtype(port.type)));
    }
    const Plan& plan = plan_for(dims);
    int index = 0;
    for (const at::Tensor& tensor : tensors) rebind(plan, index++, tensor);
    index += static_cast<int>(entry_->weights.size());
    for (const at::Tensor& tensor : results) rebind(plan, index++, tensor);
    entry_->check(entry_->step(plan.plan, nullptr));
    return results;
  }

 private:
  struct Plan {
    Dims key;
    gdsl_plan* plan;
  };

  Dims check(const std::vector<at::Tensor>& tensors) const {
    const std::size_t inputs = entry_->inputs.size(), state = entry_->state.size();
    TORCH_CHECK(tensors.size() == inputs + state, entry_->name, ": ", tensors.size(),
                " tensors given, wanted ", inputs, " inputs and ", state, " state tensors");
    Dims dims(entry_->dims.size(), unknown);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      check_tensor(entry_->name, entry_->port(i), tensors[i], dims);
    }
    for (std::size_t i = 0; i < dims.size(); ++i) {
      check_dim(entry_->name, entry_->dims[i], dims, dims[i]);
    }
    for (const PageCheck& pages : entry_->pages) check_length(*entry_, pages, tensors);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      check_range(entry_->name, entry_->port(i), tensors[i], dims);
    }
    for (const PageCheck& pages : entry_->pages) check_blocks(*entry_, pages, tensors);
    return dims;
  }

  static int threads() { return getpid() == process ? at::get_num_threads() : 1; }

  const Plan& plan_for(const Dims& dims) {
    Dims key = dims;
    key.push_back(threads());
    for (auto plan = plans_.begin(); plan != plans_.end(); ++plan) {
      if (plan->key == key) {
        plans_.splice(plans_.begin(), plans_, plan);
        return plans_.front();
      }
    }
    return create(dims, std::move(key));
  }

  const Plan& create(const Dims& dims, Dims key) {
    const int threads = static_cast<int>(key.back());
    const auto bytes = entry_->workspace_bytes(dims.data(), threads) + 64;
    if (!workspace_.defined() || workspace_.numel() < bytes) {
      drop_plans();
      workspace_.reset();
      workspace_ = at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
    }
    const auto start = reinterpret_cast<std::uintptr_t>(workspace_.mutable_data_ptr());
    void* const aligned = reinterpret_cast<void*>((start + 63) / 64 * 64);
    const std::size_t given = entry_->inputs.size() + entry_->state.size();
    std::vector<void*> table(given + entry_->weights.size() + entry_->outputs.size() + 1);
    for (std::size_t i = 0; i < entry_->weights.size(); ++i) {
      table[given + i] = const_cast<void*>(entry_->weights[i].const_data_ptr());
    }
    gdsl_plan* plan = nullptr;
    entry_->check(entry_->plan_create(table.data(), dims.data(), threads, aligned, &plan));
    plans_.push_front({std::move(key), plan});
    if (plans_.size() > most_plans) {
      entry_->plan_destroy(plans_.back().plan);
      plans_.pop_back();
    }
    return plans_.front();
  }

  void drop_plans() {
    for (const Plan& plan : plans_) entry_->plan_destroy(plan.plan);
    plans_.clear();
  }

  void rebind(const Plan& plan, int index, const at::Tensor& tensor) const {
    entry_->check(entry_->plan_rebind(plan.plan, index,
                                      const_cast<void*>(tensor.const_data_ptr())));
  }

  std::shared_ptr<const Entry> entry_;
  std::mutex mutex_;
  std::list<Plan> plans_;
  at::Tensor workspace_;
};

}  // namespace graphdsl

TORCH_LIBRARY_FRAGMENT(graphdsl, m) {
  m.def("register_operation(str name, str library, int[] numbers, str[] texts, Tensor[] weights) "
        "-> ()", [](const std::string& name, const std::string& library,
                    const std::vector<std::int64_t>& numbers, const std::vector<std::string>& texts,
                    const std::vector<at::Tensor>& weights) {
    graphdsl::register_operation(name, library, numbers, texts, weights);
  });
  m.class_<graphdsl::Operation>("Operation")
      .def(torch::init<std::string>())
      .def("execute", &graphdsl::Operation::execute);
}
