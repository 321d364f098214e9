// Setup and Execute: workspace, addresses, sizes, host tensors, streams.
#include "core.hpp"

using namespace core;

namespace {

// x + y in f32, with all that Execute wants.
struct Sum {
  Machine machine;
  Memory memory;
  Owned sum{add()};
  Tensor x = memory.device(f32({4}), 1), y = memory.device(f32({4}), 10),
         out = memory.device(f32({4}));
  uint64_t size = 0;

  Status set_up() { return set_up(pack({x, y}, {out})); }
  Status set_up(const VariantPack& tensors) {
    return sum->Setup(tensors, size, machine.context);
  }
  Status execute(const VariantPack& tensors) {
    return sum->Execute(tensors, nullptr, 0, machine.context);
  }
  Status execute() { return execute(pack({x, y}, {out})); }
};

TEST(execute_wants_a_setup_that_succeeded) {
  Sum test;
  REFUSED(test.execute(), ERROR_RT_FAIL, "ElewiseOperation: Execute without a Setup");
  OK(test.set_up());
  OK(test.execute());
  test.x.desc = f16({0});
  EXPECT(test.set_up() != NO_ERROR);
  test.x.desc = f32({4});
  REFUSED(test.execute(), ERROR_RT_FAIL, "Execute without a Setup that succeeded");
}

TEST(setup_wants_a_context) {
  Sum test;
  REFUSED(test.sum->Setup(pack({test.x, test.y}, {test.out}), test.size, nullptr),
          ERROR_INVALID_CONTEXT_ADDR, "Setup without a Context");
}

TEST(execute_wants_the_context_of_setup) {
  Sum test;
  Context* other = nullptr;
  OK(CreateContext(&other));
  other->SetExecuteStream(test.machine.stream);
  OK(test.set_up());
  REFUSED(test.sum->Execute(pack({test.x, test.y}, {test.out}), nullptr, 0, other),
          ERROR_INVALID_CONTEXT_ADDR, "another Context than Setup had");
  OK(DestroyContext(other));
}

TEST(execute_wants_a_stream) {
  Sum test;
  OK(test.set_up());
  test.machine.context->SetExecuteStream(nullptr);
  REFUSED(test.execute(), ERROR_INVALID_STREAM, "no stream that aclrtCreateStream made");
}

TEST(setup_wants_the_outputs_that_follow) {
  Sum test;
  const Tensor other = test.memory.device(f32({5})), half = test.memory.device(f16({4})),
               deep = test.memory.device(f32({4, 1}));
  REFUSED(test.set_up(pack({test.x, test.y}, {other})), ERROR_INVALID_TENSOR_DIM,
          "output 0 is f32[5]; wanted is f32[4]");
  REFUSED(test.set_up(pack({test.x, test.y}, {half})), ERROR_INVALID_TENSOR_DTYPE, "f16[4]");
  REFUSED(test.set_up(pack({test.x, test.y}, {deep})), ERROR_INVALID_TENSOR_DIM_NUM, "f32[4, 1]");
  REFUSED(test.set_up(pack({test.x, test.y}, {})), ERROR_INVALID_TENSOR_NUM,
          "0 outputs are given; there are 1");
}

TEST(setup_checks_what_infer_shape_checks) {
  Sum test;
  test.y.desc = f16({4});
  REFUSED(test.set_up(), ERROR_INVALID_TENSOR_INI_MATCH, "input 1 (other) is f16 nd");
}

TEST(execute_wants_the_shapes_of_setup) {
  Sum test;
  OK(test.set_up());
  const Tensor x = test.memory.device(f32({2})), out = test.memory.device(f32({2}));
  REFUSED(test.execute(pack({x, x}, {out})), ERROR_INVALID_TENSOR_DIM,
          "Execute after a Setup of other tensors: input 0 is f32[2]; wanted is f32[4]");
}

TEST(data_size_is_that_of_the_desc) {
  Sum test;
  OK(test.set_up());
  test.y.dataSize = 15;
  REFUSED(test.execute(), ERROR_INVALID_TENSOR_SIZE,
          "input 1 f32[4]: dataSize is 15, its size is 16");
}

TEST(a_tensor_without_data_is_refused) {
  Sum test;
  OK(test.set_up());
  test.x.deviceData = nullptr;
  REFUSED(test.execute(), ERROR_INVALID_TENSOR_ADDR, "deviceData and hostData are both null");
  test.x.hostData = test.y.deviceData;
  REFUSED(test.execute(), ERROR_INVALID_TENSOR_ADDR, "input 0 (x) f32[4]: deviceData is null");
}

TEST(an_output_may_be_an_input_as_a_whole_only) {
  Sum test;
  OK(test.set_up());
  OK(test.execute(pack({test.x, test.y}, {test.x})));
  EXPECT(at(test.x, 3) == 11);
  const Tensor both = test.memory.device(f32({8}));
  Tensor one = both, other = both;
  one.desc = other.desc = f32({4});
  one.dataSize = other.dataSize = 16;
  other.deviceData = static_cast<float*>(both.deviceData) + 1;
  REFUSED(test.execute(pack({one, test.y}, {other})), ERROR_INVALID_TENSOR_ADDR,
          "output 0 (y) overlaps input 0 (x), which is still read");
}

// out = x * (y + y) in f16, whose sum is internal
struct Inner {
  Machine machine;
  Memory memory;
  Owned graph;
  Tensor x = memory.device(f16({4})), y = memory.device(f16({4})), out = memory.device(f16({4}));
  VariantPack tensors = pack({x, y}, {out});
  uint64_t size = 0;
  Inner() {
    OK(CreateOperation(core::graph(2, 1, 1, {node(add(), {1, 1}, {3}), node(mul(), {0, 3}, {2})}),
                       &graph.operation));
  }
};

TEST(the_workspace_is_at_least_what_setup_asked_for) {
  Inner test;
  OK(test.graph->Setup(test.tensors, test.size, test.machine.context));
  EXPECT(test.size == 512);
  std::vector<uint8_t> workspace(test.size);
  REFUSED(test.graph->Execute(test.tensors, workspace.data(), 511, test.machine.context),
          ERROR_INVALID_WORKSPACE_SIZE, "the workspace has 511 bytes; Setup asked for 512");
  REFUSED(test.graph->Execute(test.tensors, nullptr, 512, test.machine.context),
          ERROR_INVALID_WORKSPACE_ADDR, "TestGraph: the workspace is null");
  OK(test.graph->Execute(test.tensors, workspace.data(), 512, test.machine.context));
}

TEST(an_output_of_a_graph_may_be_an_input_that_is_no_longer_read) {
  Inner test;
  OK(run(test.graph.operation, pack({test.x, test.y}, {test.y}), test.machine.context));
  Owned sum;
  OK(CreateOperation(core::graph(2, 2, 0, {node(add(), {0, 1}, {2}), node(add(), {0, 1}, {3})}),
                     &sum.operation));
  const Tensor second = test.memory.device(f16({4}));
  REFUSED(run(sum.operation, pack({test.x, test.y}, {test.y, second}), test.machine.context),
          ERROR_INVALID_TENSOR_ADDR,
          "output 0 overlaps input 1, which is read after the output is written");
  REFUSED(run(sum.operation, pack({test.x, test.y}, {second, second}), test.machine.context),
          ERROR_INVALID_TENSOR_ADDR, "output 1 overlaps output 0");
}

TEST(intermediates_share_memory_after_their_last_use) {
  const Machine machine;
  Memory memory;
  std::vector<Node> chain;
  for (uint32_t i = 0; i < 10; ++i)
    chain.push_back(node(add(), {i == 0 ? 0 : i + 1, 0}, {i == 9 ? 1 : i + 2}));
  Owned sums;
  OK(CreateOperation(graph(1, 1, 9, chain), &sums.operation));
  const Tensor x = memory.device(f32({256}), 1), out = memory.device(f32({256}));
  uint64_t size = 0;
  OK(sums->Setup(pack({x}, {out}), size, machine.context));
  EXPECT(size == 2 * 1024);
  OK(run(sums.operation, pack({x}, {out}), machine.context));
  EXPECT(at(out, 255) == 11);
}

// An operation of the user's own, whose kernel wants a workspace.
class Kernel : public Operation {
 public:
  explicit Kernel(uint64_t size) : size_(size) {}
  std::string GetName() const override { return "Kernel"; }
  Status InferShape(const SVector<TensorDesc>& in, SVector<TensorDesc>& out) const override {
    out = in;
    return NO_ERROR;
  }
  uint32_t GetInputNum() const override { return 1; }
  uint32_t GetOutputNum() const override { return 1; }
  Status Setup(const VariantPack&, uint64_t& size, Context*) override {
    size = size_;
    return NO_ERROR;
  }
  Status Execute(const VariantPack&, uint8_t* workspace, uint64_t size, Context*) override {
    EXPECT(size == size_);
    std::memset(workspace, 1, size);
    return NO_ERROR;
  }

 private:
  uint64_t size_;
};

TEST(the_workspace_is_that_of_the_largest_kernel_and_of_what_lies_between) {
  const Machine machine;
  Memory memory;
  Owned chain;
  const Node first = node(new Kernel(300), {0}, {2}), second = node(new Kernel(700), {2}, {3}),
             third = node(new Kernel(100), {3}, {1});
  OK(CreateOperation(graph(1, 1, 2, {first, second, third}), &chain.operation));
  const Tensor x = memory.device(f32({128})), out = memory.device(f32({128}));
  uint64_t size = 0;
  OK(chain->Setup(pack({x}, {out}), size, machine.context));
  EXPECT(size == 2 * 512 + 700);
  OK(run(chain.operation, pack({x}, {out}), machine.context));
}

// PagedAttention of one query: f16, 2 heads of 16, one key.
struct Paged {
  Machine machine;
  Memory memory;
  Owned attention;
  Tensor query = memory.device(f16({1, 2, 16})), out = memory.device(f16({1, 2, 16})), cache,
         table = memory.both({0}), contexts = memory.host({1});
  explicit Paged(const char* soc = "Ascend910B") : machine(soc) {
    infer::PagedAttentionParam param;
    param.headNum = 2;
    param.kvHeadNum = 1;
    attention.operation = made(param);
    cache = memory.device(std::string(soc) == "Ascend910B"
                              ? f16({1, 16, 1, 16})
                              : desc(ACL_FLOAT16, {1, 1, 16, 16}, ACL_FORMAT_FRACTAL_NZ));
    table.desc.shape = f16({1, 1}).shape;
  }
  VariantPack tensors() { return pack({query, cache, cache, table, contexts}, {out}); }
  Status set_up(uint64_t& size) {
    return attention->Setup(tensors(), size, machine.context);
  }
  Status go() { return run(attention.operation, tensors(), machine.context); }
};

TEST(host_data_is_required_where_setup_reads_it) {
  Paged test;
  OK(test.go());
  test.contexts.hostData = nullptr;
  uint64_t size = 0;
  REFUSED(test.set_up(size), ERROR_INVALID_TENSOR_ADDR,
          "PagedAttentionOperation: input 4 (contextLens) i32[1]: hostData is null");
}

TEST(host_data_of_a_wrong_size_is_not_read) {
  Paged test;
  test.contexts.dataSize = 2;
  uint64_t size = 0;
  REFUSED(test.set_up(size), ERROR_INVALID_TENSOR_SIZE, "dataSize is 2, its size is 4");
}

TEST(host_data_is_read_at_setup_so_that_other_lengths_want_another_setup) {
  Paged test;
  uint64_t size = 0;
  OK(test.set_up(size));
  std::vector<uint8_t> workspace(size + 1);
  static_cast<int32_t*>(test.contexts.hostData)[0] = 2;
  REFUSED(test.attention->Execute(test.tensors(), workspace.data(), size, test.machine.context),
          ERROR_INVALID_PARAM, "are not those that Setup read; Setup again");
  OK(test.go());
}

TEST(the_310p_wants_context_lens_on_the_device_too) {
  Paged test("Ascend310P3");
  REFUSED(test.go(), ERROR_INVALID_TENSOR_ADDR,
          "input 4 (contextLens) i32[1]: deviceData is null");
  test.contexts = test.memory.both({1});
  OK(test.go());
}

TEST(host_data_reaches_the_nodes_of_a_graph) {
  Paged test;
  Owned inner;
  OK(CreateOperation(graph(5, 1, 0, {node(test.attention.operation, {0, 1, 2, 3, 4}, {5})}),
                     &inner.operation));
  test.attention.operation = nullptr;
  OK(run(inner.operation, test.tensors(), test.machine.context));
  test.contexts.hostData = nullptr;
  test.contexts.deviceData = test.table.deviceData;
  REFUSED(run(inner.operation, test.tensors(), test.machine.context), ERROR_INVALID_TENSOR_ADDR,
          "TestGraph: node 0, PagedAttentionOperation: input 4 (contextLens) i32[1]: hostData");
}

TEST(results_are_read_after_the_stream_is_synchronised) {
  Sum test;
  OK(test.set_up());
  OK(test.execute());
  float result[4] = {0, 0, 0, 0};
  const auto read = [&] {
    return aclrtMemcpy(result, 16, test.out.deviceData, 16, ACL_MEMCPY_DEVICE_TO_HOST);
  };
  REFUSED(read(), ACL_ERROR_INVALID_PARAM, "before aclrtSynchronizeStream");
  OK(aclrtSynchronizeStream(test.machine.stream));
  OK(read());
  EXPECT(result[2] == 11);
}

TEST(acl_wants_a_device) {
  void* memory = nullptr;
  REFUSED(aclrtSetDevice(0), ACL_ERROR_UNINITIALIZE, "aclrtSetDevice before aclInit");
  REFUSED(aclrtMalloc(&memory, 8, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_UNINITIALIZE,
          "aclrtMalloc before aclInit and aclrtSetDevice");
  const Machine machine;
  REFUSED(aclrtSetDevice(1), ACL_ERROR_INVALID_PARAM, "there is no device 1");
  EXPECT(aclInit(nullptr) == ACL_ERROR_REPEAT_INITIALIZE);
}

TEST(acl_copies_within_bounds) {
  const Machine machine;
  void* memory = nullptr;
  const int32_t values[2] = {1, 2};
  OK(aclrtMalloc(&memory, 8, ACL_MEM_MALLOC_HUGE_FIRST));
  EXPECT(static_cast<int32_t*>(memory)[0] == -1);
  REFUSED(aclrtMemcpy(memory, 7, values, 8, ACL_MEMCPY_HOST_TO_DEVICE), ACL_ERROR_INVALID_PARAM,
          "aclrtMemcpy: 8 bytes into 7");
  OK(aclrtMemcpy(memory, 8, values, 8, ACL_MEMCPY_HOST_TO_DEVICE));
  EXPECT(static_cast<int32_t*>(memory)[1] == 2);
  OK(aclrtFree(memory));
  REFUSED(aclrtMalloc(&memory, 0, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_INVALID_PARAM, "0 bytes");
}

}  // namespace
