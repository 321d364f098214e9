// A generated library as torch.classes.graphdsl.Operation knows it, and the checks of its tensors.
#pragma once
#include <ATen/MemoryOverlap.h>
#include <dlfcn.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "torch_facts.hpp"

namespace graphdsl {
namespace {

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
  void check(const std::string& owner, int code) const {
    TORCH_CHECK(code == 0, owner, ": ", last_error());
  }
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

void check_length(const std::string& owner, const Entry& entry, const PageCheck& check,
                  const std::vector<at::Tensor>& tensors) {
  const auto pages = tensors[check.table].size(1), end = pages * check.block;
  for (const auto position : last_positions(check, tensors)) {
    TORCH_CHECK(position < end, owner, ": ", entry.port(check.positions).name, " holds ",
                position, ", but ", entry.port(check.table).name, " has ", pages, " pages of ",
                check.block, " slots for a sequence, so that positions end at ", end - 1);
  }
}

void check_blocks(const std::string& owner, const Entry& entry, const PageCheck& check,
                  const std::vector<at::Tensor>& tensors) {
  const at::Tensor& table = tensors[check.table];
  const std::string& name = entry.port(check.table).name;
  const auto what = check.positions < 0 ? "slots" : entry.port(check.positions).name;
  const auto last = last_positions(check, tensors);
  for (std::int64_t i = 0; i < table.size(0); ++i) {
    const auto* row = table.const_data_ptr<std::int32_t>() + i * table.size(1);
    for (std::int64_t page = 0; page * check.block <= last[i]; ++page) {
      TORCH_CHECK(row[page] >= 0, owner, ": ", what, " of sequence ", i, " reach ",
                  last[i], ", but ", name, "[", i, ", ", page, "] is -1: slots ",
                  page * check.block, " to ", (page + 1) * check.block - 1, " have no block");
    }
  }
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

// Results go where nothing else of the call lies.
void check_outputs(const std::string& owner, const std::vector<Port>& ports, const Dims& dims,
                   const std::vector<at::Tensor>& tensors, const std::vector<at::Tensor>& outputs) {
  TORCH_CHECK(outputs.size() == ports.size(), owner, ": ", outputs.size(),
              " outputs given, wanted ", ports.size());
  std::vector<at::Tensor> others = tensors;
  for (std::size_t i = 0; i < ports.size(); ++i) {
    Port port = ports[i];
    port.name = "the output " + (port.name.empty() ? std::to_string(i) : port.name);
    Dims known = dims;
    check_tensor(owner, port, outputs[i], known);
    for (const at::Tensor& other : others) {
      TORCH_CHECK(at::get_overlap_status(outputs[i], other) == at::MemOverlapStatus::No, owner,
                  ": ", port.name, " shares memory with another tensor of the call");
    }
    others.push_back(outputs[i]);
  }
}

}  // namespace
}  // namespace graphdsl
