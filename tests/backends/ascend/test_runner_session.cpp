// A library whose one graph is a pretended operation that counts what is asked of it, and graphs
// that ATB refuses.
#include <thread>

#include "runner.cpp"

namespace {

struct Counts {
  int32_t setups, executes, fail_at_setup, fail_at_execute;
  uint64_t workspace;
  void* stream;
  void* memory;
  void* contexts;  // of the last run, on the device
  const void* host_contexts;
  int32_t waits;
  volatile int32_t hold;  // a run that has begun ends when it is 0
};
Counts counts{};

class Counting : public atb::Operation {
 public:
  std::string GetName() const override { return "Counting"; }
  uint32_t GetInputNum() const override { return 2; }
  uint32_t GetOutputNum() const override { return 1; }
  atb::Status InferShape(const atb::SVector<atb::TensorDesc>&,
                         atb::SVector<atb::TensorDesc>&) const override {
    return atb::NO_ERROR;
  }
  atb::Status Setup(const atb::VariantPack& pack, uint64_t& bytes, atb::Context*) override {
    ++counts.setups;
    bytes = counts.workspace;
    if (counts.fail_at_setup == counts.setups) return atb::ERROR_INVALID_TENSOR_DIM;
    return pack.inTensors[1].hostData ? atb::NO_ERROR : atb::ERROR_INVALID_TENSOR_ADDR;
  }
  atb::Status Execute(const atb::VariantPack& pack, uint8_t* workspace, uint64_t bytes,
                      atb::Context* context) override {
    ++counts.executes;
    counts.stream = context->GetExecuteStream();
    counts.memory = workspace;
    counts.contexts = pack.inTensors[1].deviceData;
    counts.host_contexts = pack.inTensors[1].hostData;
    if (bytes != counts.workspace || pack.inTensors[0].hostData) return atb::ERROR_INVALID_PARAM;
    while (counts.hold) std::this_thread::yield();
    if (counts.fail_at_execute == counts.executes) return atb::ERROR_RT_FAIL;
    const auto* in = static_cast<const float*>(pack.inTensors[0].deviceData);
    auto* out = static_cast<float*>(pack.outTensors[0].deviceData);
    for (uint64_t i = 0; i < pack.inTensors[0].dataSize / sizeof(float); ++i) out[i] = in[i] + 1;
    return atb::NO_ERROR;
  }
};

atb::Status CreateCounting(atb::Operation** operation, gdsl::GraphNotes* notes) {
  *operation = new Counting;
  *notes = {"Counting", {"x: f32[rows, 4]", "contexts: i32[rows]", "y: f32[rows, 4]"}, 2, {}};
  return atb::NO_ERROR;
}

enum Tensor : uint32_t { X, POSITIONS, TILED, PLAIN, OUT, CONTEXTS, KEPT };

gdsl::Sizes SizesFor(const int64_t* dims) {
  return {{{"x", ACL_FLOAT, ACL_FORMAT_ND, {dims[0], 4}},
           {"positions", ACL_INT32, ACL_FORMAT_ND, {dims[0]}},
           {"tiled", ACL_FLOAT16, ACL_FORMAT_FRACTAL_NZ, {1, 3, 32, 16}},
           {"plain", ACL_FLOAT16, ACL_FORMAT_ND, {32, 32}},
           {"output0", ACL_FLOAT, ACL_FORMAT_ND, {dims[0], 4}},
           {"contexts", ACL_INT32, ACL_FORMAT_ND, {dims[0]}},
           {"kept", ACL_FLOAT, ACL_FORMAT_ND, {dims[0], 4}}},
          1, dims[0]};
}

// x w^T + z. A sum needs its kind, and w has to be as wide as x.
atb::Status CreateSum(bool kind, atb::Operation** operation, gdsl::GraphNotes* notes) {
  gdsl::GraphBuilder graph("Sum", {"x: f16[rows, 32]", "w: f16[32, 32]", "z: f16[rows, 32]",
                                   "y: f16[rows, 32]", "product: f16[rows, 32]"}, 3, 1);
  atb::infer::LinearParam linear{};
  linear.hasBias = false;
  graph.Add("Linear", "sum.py:7", linear, {gdsl::View(0, {gdsl::REST, 32}), 1}, {4});
  atb::infer::ElewiseParam sum{};
  if (kind) sum.elewiseType = atb::infer::ElewiseParam::ELEWISE_ADD;
  graph.Add("Elewise", "sum.py:8 <- Rule", sum, {4, 2}, {3});
  return graph.Create(operation, notes);
}

atb::TensorDesc Half(int64_t rows, int64_t columns) {
  return gdsl::DescOf({"", ACL_FLOAT16, ACL_FORMAT_ND, {rows, columns}});
}

}  // namespace

const gdsl::Program& gdsl::TheProgram() {
  static const gdsl::Program program = {
      "Counted", SizesFor, 1, 5, TILED, 2, {POSITIONS},
      {{gdsl::Kind::contexts, CONTEXTS, {POSITIONS}, 0, 0, 0}},
      KEPT, {0}, {{"Counting", CreateCounting, 2, {1}}},
      {{"decode", {0}, {{0, {X, CONTEXTS, KEPT}}, {0, {KEPT, CONTEXTS, OUT}}}}}};
  return program;
}

extern "C" {
extern const char gdsl_manifest_text[];
const char gdsl_manifest_text[] = "{}";

// What is said of a sum of these rows and columns, of a w with columns of its own.
const char* refusal(int kind, int64_t rows, int64_t columns, int64_t w_columns) {
  atb::Operation* operation = nullptr;
  gdsl::GraphNotes notes;
  if (CreateSum(kind != 0, &operation, &notes) == atb::NO_ERROR) {
    gdsl::LastError() = gdsl::Culprit(
        notes, {Half(rows, columns), Half(32, w_columns), Half(rows, 32)});
    atb::DestroyOperation(operation);
  }
  return gdsl::LastError().c_str();
}

// The linker puts it in the place of aclrtSynchronizeStream.
aclError __real_aclrtSynchronizeStream(aclrtStream stream);
aclError __wrap_aclrtSynchronizeStream(aclrtStream stream) {
  ++counts.waits;
  return __real_aclrtSynchronizeStream(stream);
}

Counts* counted() { return &counts; }
void* new_stream() {
  aclrtStream stream = nullptr;
  aclrtCreateStream(&stream);
  return stream;
}
}
