// What the plans of a thread share: the operations, ATB's context, and the memory between them.
#pragma once
#include <memory>
#include <mutex>

#include "graph_build.hpp"
#include "program.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

// One graph of the program, as ATB's operation. It is kept for good: making it is dear.
class GraphOperation {
 public:
  explicit GraphOperation(const GraphSpec& spec) : spec_(spec) {
    if (spec.create(&operation_, &notes_) != atb::NO_ERROR) throw Error(LastError());
  }
  GraphOperation(const GraphOperation&) = delete;
  GraphOperation& operator=(const GraphOperation&) = delete;
  ~GraphOperation() { atb::DestroyOperation(operation_); }

  // Makes it ready for tensors of these shapes and these values on the host, and gives the bytes
  // of workspace that it needs. What has not changed since the last time is not done again: Setup
  // reads neither the addresses nor the values of other tensors.
  uint64_t Setup(const atb::VariantPack& pack, atb::Context* context) {
    std::vector<int64_t> seen = Seen(pack);
    if (seen == seen_) return workspace_;
    seen_.clear();
    const atb::Status status = operation_->Setup(pack, workspace_, context);
    if (status != atb::NO_ERROR) throw Error(Refusal(pack, status));
    seen_ = std::move(seen);
    return workspace_;
  }

  void Execute(const atb::VariantPack& pack, void* workspace, atb::Context* context) {
    const atb::Status status =
        operation_->Execute(pack, static_cast<uint8_t*>(workspace), workspace_, context);
    if (status == atb::NO_ERROR) return;
    seen_.clear();
    throw Error(notes_.name + " failed with ATB error " + StatusText(status) + " for " +
                Found(pack) + LogText());
  }

 private:
  std::vector<int64_t> Seen(const atb::VariantPack& pack) const {
    std::vector<int64_t> seen;
    for (const auto* tensors : {&pack.inTensors, &pack.outTensors}) {
      for (const atb::Tensor& tensor : *tensors) {
        const atb::Dims& shape = tensor.desc.shape;
        seen.push_back(static_cast<int64_t>(shape.dimNum));
        seen.insert(seen.end(), shape.dims, shape.dims + shape.dimNum);
      }
    }
    for (const uint32_t place : spec_.host) {
      const atb::Tensor& tensor = pack.inTensors[place];
      const auto* values = static_cast<const int32_t*>(tensor.hostData);
      seen.insert(seen.end(), values, values + tensor.dataSize / sizeof(int32_t));
    }
    return seen;
  }

  std::string Refusal(const atb::VariantPack& pack, atb::Status status) const {
    const std::string log = LogText();  // before other checks fail
    atb::SVector<atb::TensorDesc> inputs;
    inputs.reserve(pack.inTensors.size());
    for (const atb::Tensor& tensor : pack.inTensors) inputs.push_back(tensor.desc);
    const std::string culprit = Culprit(notes_, inputs);
    if (!culprit.empty()) return culprit + log;
    return notes_.name + " refuses " + Found(pack) + ": ATB error " + StatusText(status) + log;
  }

  std::string Found(const atb::VariantPack& pack) const {
    std::string text;
    uint32_t id = 0;
    for (const auto* tensors : {&pack.inTensors, &pack.outTensors}) {
      for (const atb::Tensor& tensor : *tensors) {
        text += (text.empty() ? "" : ", ") + NameOf(notes_, id++) + " " + DescText(tensor.desc);
      }
    }
    return text;
  }

  const GraphSpec& spec_;
  GraphNotes notes_;
  atb::Operation* operation_ = nullptr;
  std::vector<int64_t> seen_;
  uint64_t workspace_ = 0;
};

class Session {
 public:
  explicit Session(const Program& program) : kept_(PlaceCount(program)) {
    for (const GraphSpec& graph : program.graphs) {
      graphs_.push_back(std::make_unique<GraphOperation>(graph));
    }
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    Finish();
    graphs_.clear();
    if (context_) atb::DestroyContext(context_);
    if (own_stream_) aclrtDestroyStream(own_stream_);
  }

  // The stream of the next runs: the caller's, or one of our own. What still runs on another one
  // uses the same memory, so that it is waited for.
  void Use(aclrtStream given) {
    if (!given && !own_stream_) {
      // Whoever else is in this process may have been first, which is no failure.
      static_cast<void>(aclInit(nullptr));
      CheckAcl(aclrtSetDevice(0), "choosing device 0");
      CheckAcl(aclrtCreateStream(&own_stream_), "making a stream");
    }
    if (!context_) CheckAtb(atb::CreateContext(&context_), "making ATB's context");
    const aclrtStream wanted = given ? given : own_stream_;
    if (wanted == stream_) return;
    Finish();
    CheckAtb(context_->SetExecuteStream(wanted), "giving ATB the stream");
    stream_ = wanted;
  }

  void Wait() {
    CheckAcl(aclrtSynchronizeStream(stream_), "running on the device");
    ++waits_;
  }

  // Waits where anything was run; a device that failed has said so already.
  void Finish() {
    if (stream_) static_cast<void>(aclrtSynchronizeStream(stream_));
    ++waits_;
  }

  // How often all that was run has been waited for.
  uint64_t waits() const { return waits_; }

  void Run(uint32_t graph, const atb::VariantPack& pack) {
    GraphOperation& operation = *graphs_[graph];
    const uint64_t bytes = operation.Setup(pack, context_);
    void* workspace = workspace_.Grow(bytes, stream_, "the workspace");
    operation.Execute(pack, workspace, context_);
  }

  aclrtStream stream() const { return stream_; }
  Buffer& kept(uint32_t place) { return kept_[place]; }

  std::mutex busy;

 private:
  static size_t PlaceCount(const Program& program) {
    uint32_t count = 0;
    for (const uint32_t place : program.places) count = std::max(count, place + 1);
    return count;
  }

  Buffer workspace_;
  std::vector<Buffer> kept_;
  std::vector<std::unique_ptr<GraphOperation>> graphs_;
  atb::Context* context_ = nullptr;
  aclrtStream own_stream_ = nullptr;
  aclrtStream stream_ = nullptr;
  uint64_t waits_ = 0;
};

}  // namespace gdsl
