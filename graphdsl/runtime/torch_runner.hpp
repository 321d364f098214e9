// What an Operation runs: plans of a generated library, or a layer of Python.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <unistd.h>

#include <list>
#include <memory>

#include "torch_entry.hpp"

namespace graphdsl {
namespace {

using Tensors = std::vector<at::Tensor>;
// A mask may be left out.
using Given = c10::List<std::optional<at::Tensor>>;

constexpr std::size_t most_plans = 8;
// Where this was loaded: in any other process OpenMP's threads were lost in a fork.
const pid_t process = getpid();

class Runner {
 public:
  Runner() = default;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  virtual ~Runner() = default;
  virtual Tensors execute(const Given& tensors) = 0;
  virtual void execute_out(const Given& tensors, const Tensors& outputs) = 0;
  virtual void set_name(const std::string& name) = 0;
  virtual void set_param(const std::string& text) = 0;
};

// One plan for every combination of sizes, on one workspace that grows.
class PlanRunner : public Runner {
 public:
  explicit PlanRunner(std::shared_ptr<const Entry> entry)
      : entry_(std::move(entry)), name_(entry_->name) {}
  ~PlanRunner() override { drop_plans(); }

  // `tensors` are the inputs, then the state, which is changed in place; gives the results.
  Tensors execute(const Given& given) override {
    const Tensors tensors = all(given);
    const Dims dims = check(tensors);
    Tensors results;
    for (const Port& port : entry_->outputs) {
      results.push_back(at::empty(port.sizes(dims), at::TensorOptions().dtype(port.type)));
    }
    run(dims, tensors, results);
    return results;
  }

  void execute_out(const Given& given, const Tensors& outputs) override {
    const Tensors tensors = all(given);
    const Dims dims = check(tensors);
    check_outputs(name_, entry_->outputs, dims, tensors, outputs);
    run(dims, tensors, outputs);
  }

  void set_name(const std::string& name) override { name_ = name; }

  void set_param(const std::string&) override {
    TORCH_CHECK(false, name_, ": set_param: an operator has its numbers from its build\n  hint: "
                "leave it out; a layer with ATB's order of calls compares them, "
                "graphdsl.borders.atb.AtbLayer");
  }

 private:
  struct Plan {
    Dims key;
    gdsl_plan* plan;
  };

  // One that is left out is refused with the others that do not fit.
  static Tensors all(const Given& given) {
    Tensors tensors;
    for (const std::optional<at::Tensor> tensor : given) {
      tensors.push_back(tensor.value_or(at::Tensor()));
    }
    return tensors;
  }

  Dims check(const Tensors& tensors) const {
    const std::size_t inputs = entry_->inputs.size(), state = entry_->state.size();
    TORCH_CHECK(tensors.size() == inputs + state, name_, ": ", tensors.size(),
                " tensors given, wanted ", inputs, " inputs and ", state, " state tensors");
    Dims dims(entry_->dims.size(), unknown);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      check_tensor(name_, entry_->port(i), tensors[i], dims);
    }
    for (std::size_t i = 0; i < dims.size(); ++i) {
      check_dim(name_, entry_->dims[i], dims, dims[i]);
    }
    for (const PageCheck& pages : entry_->pages) check_length(name_, *entry_, pages, tensors);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      check_range(name_, entry_->port(i), tensors[i], dims);
    }
    for (const PageCheck& pages : entry_->pages) check_blocks(name_, *entry_, pages, tensors);
    return dims;
  }

  void run(const Dims& dims, const Tensors& tensors, const Tensors& results) {
    const Plan& plan = plan_for(dims);
    int index = 0;
    for (const at::Tensor& tensor : tensors) rebind(plan, index++, tensor);
    index += static_cast<int>(entry_->weights.size());
    for (const at::Tensor& tensor : results) rebind(plan, index++, tensor);
    entry_->check(name_, entry_->step(plan.plan, nullptr));
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
    entry_->check(name_, entry_->plan_create(table.data(), dims.data(), threads, aligned, &plan));
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
    entry_->check(name_, entry_->plan_rebind(plan.plan, index,
                                             const_cast<void*>(tensor.const_data_ptr())));
  }

  std::shared_ptr<const Entry> entry_;
  std::string name_;
  std::list<Plan> plans_;
  at::Tensor workspace_;
};

// A layer that Python runs, held as an attribute of a tensor. It is called by way of torch's
// operators `graphdsl::twin_of_layer` and `graphdsl::call_layer`: torch sees to Python's lock, and
// keeps the attributes of a tensor for as long as C++ has it.
class LayerRunner : public Runner {
 public:
  // A twin of what is registered, with weights and a cache of its own.
  explicit LayerRunner(const at::Tensor& registered) {
    torch::jit::Stack stack{registered};
    call("graphdsl::twin_of_layer", stack);
    layer_ = stack.at(0).toTensor();
  }

  Tensors execute(const Given& tensors) override { return call("execute", tensors, {}, ""); }
  void execute_out(const Given& tensors, const Tensors& outputs) override {
    call("execute_out", tensors, outputs, "");
  }
  void set_name(const std::string& name) override { call("set_name", Given(), {}, name); }
  void set_param(const std::string& text) override { call("set_param", Given(), {}, text); }

 private:
  Tensors call(const char* method, const Given& tensors, const Tensors& outputs,
               const std::string& text) const {
    torch::jit::Stack stack{layer_, method, tensors, outputs, text};
    call("graphdsl::call_layer", stack);
    const std::string& refused = stack.at(1).toStringRef();
    TORCH_CHECK(refused.empty(), refused);
    return stack.at(0).toTensorVector();
  }

  static void call(const char* name, torch::jit::Stack& stack) {
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
  }

  at::Tensor layer_;
};

}  // namespace
}  // namespace graphdsl
