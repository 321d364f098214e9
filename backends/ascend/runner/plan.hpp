// A plan: tensors of known sizes, and the steps that run on them.
#pragma once
#include <array>

#include "session.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

// One prepared tensor of a plan: its values on the host and on the device, as one step had them and
// others before it, which may still run.
struct PreparedTensor {
  struct Copy {
    Values values;
    Buffer device;
    uint64_t free_at = 0;  // waits of the session after which no step reads it
  };

  // One that no step reads, or null.
  Copy* Unread(uint64_t waits) {
    for (Copy& copy : copies) {
      if (copy.free_at <= waits) return &copy;
    }
    return nullptr;
  }

  std::array<Copy, 8> copies;  // so many steps can be queued before one waits
  Copy* current = nullptr;
};

class Plan {
 public:
  Plan(const Program& program, const int64_t* dims, std::shared_ptr<Session> session)
      : program_(program),
        session_(std::move(session)),
        sizes_(program.sizes(dims)),
        call_{sizes_.sequences, sizes_.rows / sizes_.sequences},
        pointers_(program.ports, nullptr),
        prepared_(program.prepared.size()) {
    for (const TensorSpec& spec : sizes_.tensors) {
      atb::Tensor tensor;
      tensor.desc = DescOf(spec);
      tensor.dataSize = BytesOf(spec);
      tensors_.push_back(tensor);
    }
  }

  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  // What is queued may still read what is freed now. Any thread may let go of a plan.
  ~Plan() {
    const std::lock_guard<std::mutex> lock(session_->busy);
    session_->Finish();
  }

  void Bind(uint32_t port, void* pointer) { pointers_.at(port) = pointer; }

  void Step(aclrtStream stream) {
    const std::lock_guard<std::mutex> lock(session_->busy);
    session_->Use(stream);
    const PhaseSpec& phase = Choose(program_.phases, HostInputs(program_.positions), call_);
    PlacePorts();
    PlaceKept();
    for (const uint32_t number : phase.prepared) Prepare(number);
    for (const uint32_t number : phase.prepared) {
      prepared_[number].current->free_at = session_->waits() + 1;
    }
    for (const RunSpec& run : phase.runs) session_->Run(run.graph, Pack(run));
    if (!stream) session_->Wait();
  }

 private:
  std::vector<HostInput> HostInputs(const std::vector<uint32_t>& tensors) const {
    std::vector<HostInput> inputs;
    for (const uint32_t tensor : tensors) {
      if (!pointers_[tensor]) throw Error(Unbound(tensor));
      inputs.push_back({&sizes_.tensors[tensor], pointers_[tensor]});
    }
    return inputs;
  }

  std::string Unbound(uint32_t tensor) const {
    return std::string("nothing is bound to ") + sizes_.tensors[tensor].name + " " +
           DescText(tensors_[tensor].desc);
  }

  void PlacePorts() {
    for (size_t i = 0; i < pointers_.size(); ++i) tensors_[i].deviceData = pointers_[i];
  }

  // Memory of kept tensors is that of all plans of the session: it may have moved since.
  void PlaceKept() {
    for (size_t i = 0; i < program_.places.size(); ++i) {
      atb::Tensor& tensor = tensors_[program_.first_kept + i];
      Buffer& place = session_->kept(program_.places[i]);
      place.Grow(tensor.dataSize, session_->stream(), "what lies between graphs");
    }
    for (size_t i = 0; i < program_.places.size(); ++i) {
      tensors_[program_.first_kept + i].deviceData = session_->kept(program_.places[i]).data();
    }
  }

  // The device gets a copy only where values have changed.
  void Prepare(uint32_t number) {
    const PreparedSpec& spec = program_.prepared[number];
    PreparedTensor& prepared = prepared_[number];
    atb::Tensor& tensor = tensors_[spec.tensor];
    const bool constant = spec.of.empty();
    if (constant && prepared.current) return;
    Values values = Compute(spec, sizes_.tensors[spec.tensor], HostInputs(spec.of), call_);
    if (values.bytes() != tensor.dataSize) {
      throw Error(std::string(sizes_.tensors[spec.tensor].name) + " has " +
                  std::to_string(values.bytes()) + " bytes, wanted " + DescText(tensor.desc));
    }
    if (!prepared.current || values != prepared.current->values) {
      Copy(std::move(values), prepared, tensor);
    }
  }

  // aclrtMemcpy has copied when it returns, whatever is queued: it may not write what a step reads.
  void Copy(Values values, PreparedTensor& prepared, atb::Tensor& tensor) {
    prepared.current = nullptr;
    PreparedTensor::Copy* copy = prepared.Unread(session_->waits());
    if (!copy) {
      session_->Wait();
      copy = prepared.Unread(session_->waits());
    }
    copy->values = std::move(values);
    tensor.hostData = const_cast<void*>(copy->values.data());
    tensor.deviceData = copy->device.Grow(tensor.dataSize, session_->stream(), "a prepared tensor");
    CheckAcl(aclrtMemcpy(tensor.deviceData, tensor.dataSize, tensor.hostData, tensor.dataSize,
                         ACL_MEMCPY_HOST_TO_DEVICE),
             "copying to the device");
    prepared.current = copy;
  }

  atb::VariantPack Pack(const RunSpec& run) const {
    atb::VariantPack pack;
    const GraphSpec& graph = program_.graphs[run.graph];
    pack.inTensors.reserve(graph.inputs);
    for (size_t i = 0; i < run.bound.size(); ++i) {
      const atb::Tensor& tensor = tensors_[run.bound[i]];
      if (!tensor.deviceData) throw Error(Unbound(run.bound[i]));
      (i < graph.inputs ? pack.inTensors : pack.outTensors).push_back(tensor);
    }
    // Only what ATB reads on the host has a place there.
    for (uint32_t i = 0; i < graph.inputs; ++i) {
      if (std::find(graph.host.begin(), graph.host.end(), i) == graph.host.end()) {
        pack.inTensors[i].hostData = nullptr;
      }
    }
    return pack;
  }

  const Program& program_;
  std::shared_ptr<Session> session_;
  Sizes sizes_;
  Call call_;
  std::vector<void*> pointers_;
  std::vector<PreparedTensor> prepared_;
  std::vector<atb::Tensor> tensors_;
};

}  // namespace gdsl
