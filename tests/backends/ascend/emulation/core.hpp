// What the tests of the emulation's core share: tests by name, tensors with memory, graphs.
#pragma once
#include <atb/atb_infer.h>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

extern "C" const char* gdsl_runtime_log();
extern "C" void atb_emulation_set_soc(const char* name);

namespace core {

using namespace atb;

inline std::map<std::string, std::function<void()>>& tests() {
  static std::map<std::string, std::function<void()>> all;
  return all;
}
inline int failures = 0;

struct Registered {
  Registered(const char* name, std::function<void()> test) { tests()[name] = std::move(test); }
};

inline void expect(bool holds, const char* text, const char* file, int line) {
  if (holds) return;
  ++failures;
  std::printf("%s:%d: %s\n  log: %s\n", file, line, text, gdsl_runtime_log());
}

// A call that is refused with this code, in a sentence that has these words.
inline void refused(Status status, Status code, const std::string& words, const char* file,
                    int line) {
  const std::string log = gdsl_runtime_log();
  if (status == code && log.find(words) != std::string::npos) return;
  ++failures;
  std::printf("%s:%d: status %d, wanted %d\n  log: %s\n  wanted: %s\n", file, line, status, code,
              log.c_str(), words.c_str());
}

#define TEST(name)                                        \
  static void name();                                     \
  static core::Registered registered_##name(#name, name); \
  static void name()
#define EXPECT(condition) core::expect(condition, #condition, __FILE__, __LINE__)
#define REFUSED(call, code, words) core::refused(call, code, words, __FILE__, __LINE__)
#define OK(call) EXPECT((call) == atb::NO_ERROR)

inline TensorDesc desc(aclDataType dtype, const std::vector<int64_t>& shape,
                       aclFormat format = ACL_FORMAT_ND) {
  TensorDesc made{dtype, format, {}};
  for (int64_t size : shape) made.shape.dims[made.shape.dimNum++] = size;
  return made;
}
inline TensorDesc f32(const std::vector<int64_t>& shape) { return desc(ACL_FLOAT, shape); }
inline TensorDesc f16(const std::vector<int64_t>& shape) { return desc(ACL_FLOAT16, shape); }

inline SVector<TensorDesc> descs(const std::vector<TensorDesc>& list) {
  SVector<TensorDesc> made;
  for (const TensorDesc& one : list) made.push_back(one);
  return made;
}

// Tensors in memory of exactly their size.
class Memory {
 public:
  Tensor device(const TensorDesc& desc, float value = 0) {
    Tensor made;
    made.desc = desc;
    made.dataSize = Utils::GetTensorSize(desc);
    made.deviceData = bytes(made.dataSize);
    for (uint64_t i = 0; desc.dtype == ACL_FLOAT && i < made.dataSize / 4; ++i)
      static_cast<float*>(made.deviceData)[i] = value;
    return made;
  }
  Tensor host(const std::vector<int32_t>& values) {
    Tensor made;
    made.desc = desc(ACL_INT32, {static_cast<int64_t>(values.size())});
    made.dataSize = values.size() * 4;
    made.hostData = bytes(made.dataSize);
    std::memcpy(made.hostData, values.data(), made.dataSize);
    return made;
  }
  // The same values on both sides.
  Tensor both(const std::vector<int32_t>& values) {
    Tensor made = host(values);
    made.deviceData = bytes(made.dataSize);
    std::memcpy(made.deviceData, made.hostData, made.dataSize);
    return made;
  }

 private:
  void* bytes(uint64_t count) {
    blocks_.push_back(std::make_unique<uint8_t[]>(count));
    return blocks_.back().get();
  }
  std::vector<std::unique_ptr<uint8_t[]>> blocks_;
};

inline float at(const Tensor& tensor, size_t index) {
  return static_cast<const float*>(tensor.deviceData)[index];
}

// A device, a stream and a context, for as long as a test runs.
struct Machine {
  Context* context = nullptr;
  aclrtStream stream = nullptr;
  explicit Machine(const char* soc = "Ascend910B") {
    atb_emulation_set_soc(soc);
    aclInit(nullptr);
    aclrtSetDevice(0);
    aclrtCreateStream(&stream);
    CreateContext(&context);
    context->SetExecuteStream(stream);
  }
  ~Machine() {
    DestroyContext(context);
    aclrtDestroyStream(stream);
    aclFinalize();
    atb_emulation_set_soc("Ascend910B");
  }
};

// An operation that is destroyed in the end, unless a graph has it.
struct Owned {
  Operation* operation = nullptr;
  ~Owned() {
    if (operation != nullptr) DestroyOperation(operation);
  }
  Operation* operator->() const { return operation; }
};

template <class Param> Operation* made(const Param& param) {
  Operation* operation = nullptr;
  if (CreateOperation(param, &operation) != NO_ERROR)
    std::printf("not created: %s\n", gdsl_runtime_log());
  return operation;
}

inline infer::ElewiseParam elewise(infer::ElewiseParam::ElewiseType type) {
  infer::ElewiseParam param;
  param.elewiseType = type;
  return param;
}
inline Operation* add() { return made(elewise(infer::ElewiseParam::ELEWISE_ADD)); }
inline Operation* mul() { return made(elewise(infer::ElewiseParam::ELEWISE_MUL)); }

inline Node node(Operation* operation, const std::vector<uint32_t>& in,
                 const std::vector<uint32_t>& out) {
  Node made;
  made.operation = operation;
  for (uint32_t id : in) made.inTensorIds.push_back(id);
  for (uint32_t id : out) made.outTensorIds.push_back(id);
  return made;
}

inline GraphParam graph(uint32_t in, uint32_t out, uint32_t internal,
                        const std::vector<Node>& nodes) {
  GraphParam made;
  made.name = "TestGraph";
  made.inTensorNum = in;
  made.outTensorNum = out;
  made.internalTensorNum = internal;
  made.nodes = nodes;
  return made;
}

// Creating the graph is refused; its operations, which are the caller's then, are destroyed.
inline void refuse_graph(const GraphParam& param, Status code, const std::string& words,
                         const char* file, int line) {
  Owned graph;
  refused(CreateOperation(param, &graph.operation), code, words, file, line);
  std::map<Operation*, bool> seen;
  for (const Node& one : param.nodes)
    if (graph.operation == nullptr && one.operation != nullptr && !seen[one.operation]) {
      seen[one.operation] = true;
      DestroyOperation(one.operation);
    }
}
#define REFUSED_GRAPH(param, words) \
  core::refuse_graph(param, atb::ERROR_INVALID_GRAPH, words, __FILE__, __LINE__)

inline VariantPack pack(const std::vector<Tensor>& in, const std::vector<Tensor>& out) {
  VariantPack made;
  for (const Tensor& tensor : in) made.inTensors.push_back(tensor);
  for (const Tensor& tensor : out) made.outTensors.push_back(tensor);
  return made;
}

// Setup and Execute, with a workspace of exactly the size.
inline Status run(Operation* operation, const VariantPack& pack, Context* context) {
  uint64_t size = 0;
  const Status status = operation->Setup(pack, size, context);
  if (status != NO_ERROR) return status;
  const auto workspace = std::make_unique<uint8_t[]>(size);
  return operation->Execute(pack, size == 0 ? nullptr : workspace.get(), size, context);
}

}  // namespace core
