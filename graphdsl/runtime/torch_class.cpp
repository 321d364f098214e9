// torch.classes.graphdsl.Operation: what Python registers under a name, behind the calling
// convention of ATB's OperationTorch. A generated library has its tensors checked as the Python
// runtime does and runs one plan; a layer is called in Python.
#include <torch/custom_class.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "torch_runner.hpp"

namespace graphdsl {
namespace {

// What a name stands for: a library, or a tensor with a layer of Python among its attributes.
struct Registered {
  std::shared_ptr<const Entry> entry;
  at::Tensor layer;
};

std::mutex table_mutex;
// Never freed: when the process ends, Python and torch may be gone before what is static here.
std::map<std::string, Registered>& table() {
  static auto* const entries = new std::map<std::string, Registered>;
  return *entries;
}

void put(const std::string& name, Registered registered) {
  const std::lock_guard<std::mutex> lock(table_mutex);
  std::swap(table()[name], registered);
}

void register_operation(const std::string& name, const std::string& library,
                        const std::vector<std::int64_t>& numbers,
                        const std::vector<std::string>& texts, std::vector<at::Tensor> weights) {
  put(name, {std::make_shared<const Entry>(library, Reader(numbers, texts), std::move(weights)),
             at::Tensor()});
}

Registered find(const std::string& name) {
  const std::lock_guard<std::mutex> lock(table_mutex);
  std::string known;
  for (const auto& item : table()) known += (known.empty() ? "" : ", ") + item.first;
  const auto found = table().find(name);
  TORCH_CHECK(found != table().end(), "no operation ", name, " is registered\n  hint: registered: ",
              known.empty() ? "none" : known);
  return found->second;
}

std::unique_ptr<Runner> runner_for(const std::string& name) {
  const Registered found = find(name);
  if (found.entry) return std::make_unique<PlanRunner>(found.entry);
  return std::make_unique<LayerRunner>(found.layer);
}

}  // namespace

// Calls on one Operation wait for each other; threads that are to run at once have one each. torch
// wants a type of its own for every spelling of the class.
template <class Spelling>
class Operation : public torch::CustomClassHolder {
 public:
  explicit Operation(const std::string& name) : runner_(runner_for(name)) {}

  Tensors execute(const Given& tensors) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return runner_->execute(tensors);
  }
  void execute_out(const Given& tensors, const Tensors& outputs) {
    const std::lock_guard<std::mutex> lock(mutex_);
    runner_->execute_out(tensors, outputs);
  }
  void set_name(const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    runner_->set_name(name);
  }
  void set_param(const std::string& text) {
    const std::lock_guard<std::mutex> lock(mutex_);
    runner_->set_param(text);
  }

 private:
  std::unique_ptr<Runner> runner_;
  std::mutex mutex_;
};

namespace {

struct OurSpelling;
struct AtbSpelling;

template <class Class>
void define(torch::class_<Class> made) {
  made.def(torch::init<std::string>())
      .def("execute", &Class::execute)
      .def("execute_out", &Class::execute_out)
      .def("set_name", &Class::set_name)
      .def("set_param", &Class::set_param);
}

// Whether torch.classes.OperationTorch.OperationTorch is ours, which it becomes where no other
// software has it.
bool alias() {
  static std::mutex once;
  static bool ours = false;
  const std::lock_guard<std::mutex> lock(once);
  if (!ours && !torch::getCustomClass("__torch__.torch.classes.OperationTorch.OperationTorch")) {
    define(torch::class_<Operation<AtbSpelling>>("OperationTorch", "OperationTorch"));
    ours = true;
  }
  return ours;
}

}  // namespace
}  // namespace graphdsl

TORCH_LIBRARY_FRAGMENT(graphdsl, m) {
  m.def("register_operation(str name, str library, int[] numbers, str[] texts, Tensor[] weights) "
        "-> ()", [](const std::string& name, const std::string& library,
                    const std::vector<std::int64_t>& numbers, const std::vector<std::string>& texts,
                    const std::vector<at::Tensor>& weights) {
    graphdsl::register_operation(name, library, numbers, texts, weights);
  });
  m.def("register_layer(str name, Tensor layer) -> ()",
        [](const std::string& name, const at::Tensor& layer) {
    graphdsl::put(name, {nullptr, layer});
  });
  m.def("alias_operation() -> bool", [] { return graphdsl::alias(); });
  graphdsl::define(m.class_<graphdsl::Operation<graphdsl::OurSpelling>>("Operation"));
}
