// torch.classes.graphdsl.Operation: generated libraries behind the calling convention of ATB's
// OperationTorch. Python registers a build under a name; Operation(name).execute([...]) checks its
// tensors as the Python runtime does, and runs one plan.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/custom_class.h>
#include <unistd.h>

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"

namespace graphdsl {
namespace {

using Dims = std::vector<std::int64_t>;
constexpr std::int64_t unknown = -1;
constexpr std::size_t most_plans = 8;
// Where this was loaded: in any other process OpenMP's threads were lost in a fork.
const pid_t process = getpid();

// A constant and a multiple of some dims.
struct Extent {
  std::vector<std::pair<std::size_t, std::int64_t>> terms;
  std::int64_t constant = 0;

  std::int64_t value(const Dims& dims) const {
    std::int64_t total = constant;
    for (const auto& [dim, factor] : terms) total += factor * dims[dim];
    return total;
  }
  // Settles the one dim that is not known yet.
  void settle(std::int64_t size, Dims& dims) const {
    std::size_t open = 0, which = 0;
    std::int64_t rest = constant, by = 1;
    for (const auto& [dim, factor] : terms) {
      if (dims[dim] != unknown) {
        rest += factor * dims[dim];
      } else {
        ++open;
        which = dim;
        by = factor;
      }
    }
    if (open == 1) dims[which] = (size - rest) / by;
  }
};

struct Port {
  std::string name, wanted;
  at::ScalarType type = at::kFloat;
  std::vector<Extent> shape;
  std::vector<std::pair<Extent, Extent>> ranges;

  std::vector<std::int64_t> sizes(const Dims& dims) const {
    std::vector<std::int64_t> found;
    for (const Extent& extent : shape) found.push_back(extent.value(dims));
    return found;
  }
};

struct Bound {
  std::string name;
  std::int64_t low, high;
};

// The numbers and texts in which Python hands over a manifest, read front to back.
class Reader {
 public:
  Reader(const std::vector<std::int64_t>& numbers, const std::vector<std::string>& texts)
      : numbers_(numbers), texts_(texts) {}
  std::int64_t number() { return numbers_.at(number_++); }
  std::string text() { return texts_.at(text_++); }
  Extent extent() {
    Extent made;
    for (auto left = number(); left > 0; --left) {
      const auto dim = static_cast<std::size_t>(number());
      made.terms.emplace_back(dim, number());
    }
    made.constant = number();
    return made;
  }
  Port port() {
    static const std::map<std::string, at::ScalarType> types = {
        {"f32", at::kFloat}, {"bf16", at::kBFloat16}, {"f16", at::kHalf},
        {"f64", at::kDouble}, {"i32", at::kInt}, {"bool", at::kBool}};
    Port made;
    made.name = text();
    made.wanted = text();
    made.type = types.at(text());
    for (auto left = number(); left > 0; --left) made.shape.push_back(extent());
    for (auto left = number(); left > 0; --left) {
      Extent low = extent();
      made.ranges.emplace_back(std::move(low), extent());
    }
    return made;
  }
  std::vector<Port> ports() {
    std::vector<Port> made;
    for (auto left = number(); left > 0; --left) made.push_back(port());
    return made;
  }
  std::vector<Bound> bounds() {
    std::vector<Bound> made;
    for (auto left = number(); left > 0; --left) {
      const auto low = number();
      made.push_back({text(), low, number()});
    }
    return made;
  }

 private:
  const std::vector<std::int64_t>& numbers_;
  const std::vector<std::string>& texts_;
  std::size_t number_ = 0, text_ = 0;
};

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
  std::vector<at::Tensor> weights;
  decltype(&gdsl_workspace_bytes) workspace_bytes;
  decltype(&gdsl_plan_create) plan_create;
  decltype(&gdsl_plan_rebind) plan_rebind;
  decltype(&gdsl_step) step;
  decltype(&gdsl_plan_destroy) plan_destroy;
  decltype(&gdsl_last_error) last_error;

  Entry(const std::string& path, Reader reader, std::vector<at::Tensor> given)
      : name(reader.text()), dims(reader.bounds()), inputs(reader.ports()), state(reader.ports()),
        outputs(reader.ports()), weights(std::move(given)) {
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
};

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
      check_tensor(entry_->name, port(i), tensors[i], dims);
    }
    for (std::size_t i = 0; i < dims.size(); ++i) {
      const Bound& bound = entry_->dims[i];
      if (dims[i] == unknown) dims[i] = bound.low;
      TORCH_CHECK(bound.low <= dims[i] && dims[i] <= bound.high, entry_->name, ": ", bound.name,
                  " is ", dims[i], ", wanted ", bound.low, " to ", bound.high);
    }
    for (std::size_t i = 0; i < inputs; ++i) check_range(entry_->name, port(i), tensors[i], dims);
    return dims;
  }
  const Port& port(std::size_t i) const {
    const std::size_t inputs = entry_->inputs.size();
    return i < inputs ? entry_->inputs[i] : entry_->state[i - inputs];
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
