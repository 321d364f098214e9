// Which inputs of attention Setup reads on the host.
#include "core.hpp"

using namespace core;
using infer::SelfAttentionParam;

namespace {

SelfAttentionParam one_head(SelfAttentionParam::CalcType type) {
  SelfAttentionParam param;
  param.headNum = 1;
  param.kvHeadNum = 1;
  param.calcType = type;
  return param;
}

// One new token of one sequence with contiguous caches of 4 slots.
struct Contiguous {
  Machine machine;
  Memory memory;
  Owned attention{made(one_head(SelfAttentionParam::UNDEFINED))};
  Tensor row = memory.device(f16({1, 16})), out = memory.device(f16({1, 16})),
         cache = memory.device(f16({1, 1, 4, 16})), value_cache = memory.device(f16({1, 1, 4, 16})),
         token_offset = memory.host({2}), lengths = memory.host({1}), layer = memory.both({0});
  Status go() {
    return run(attention.operation,
               pack({row, row, row, cache, value_cache, token_offset, lengths, layer}, {out}),
               machine.context);
  }
};

TEST(contiguous_attention_takes_token_offset_and_seq_len_without_device_data) {
  Contiguous test;
  EXPECT(test.token_offset.deviceData == nullptr && test.lengths.deviceData == nullptr);
  OK(test.go());
}

TEST(contiguous_attention_wants_token_offset_and_seq_len_on_the_host) {
  Contiguous test;
  std::swap(test.token_offset.hostData, test.token_offset.deviceData);
  REFUSED(test.go(), ERROR_INVALID_TENSOR_ADDR, "input 5 (tokenOffset) i32[1]: hostData is null");
  std::swap(test.token_offset.hostData, test.token_offset.deviceData);
  std::swap(test.lengths.hostData, test.lengths.deviceData);
  REFUSED(test.go(), ERROR_INVALID_TENSOR_ADDR, "input 6 (seqLen) i32[1]: hostData is null");
}

TEST(contiguous_attention_wants_layer_id_on_the_device) {
  Contiguous test;
  test.layer.deviceData = nullptr;
  REFUSED(test.go(), ERROR_INVALID_TENSOR_ADDR, "input 7 (layerId) i32[1]: deviceData is null");
}

TEST(pa_encoder_wants_seq_len_on_the_host) {
  const Machine machine;
  Memory memory;
  const Owned attention{made(one_head(SelfAttentionParam::PA_ENCODER))};
  const Tensor rows = memory.device(f16({2, 1, 16})), out = memory.device(f16({2, 1, 16}));
  Tensor lengths = memory.host({2});
  OK(run(attention.operation, pack({rows, rows, rows, lengths}, {out}), machine.context));
  std::swap(lengths.hostData, lengths.deviceData);
  REFUSED(run(attention.operation, pack({rows, rows, rows, lengths}, {out}), machine.context),
          ERROR_INVALID_TENSOR_ADDR, "input 3 (seqLen) i32[1]: hostData is null");
}

TEST(a_host_input_that_a_node_writes_is_refused) {
  Contiguous test;
  const Tensor lengths = test.memory.both({1});
  Owned both;
  const Node sum = node(add(), {6, 6}, {9}),
             attention = node(test.attention.operation, {0, 1, 2, 3, 4, 5, 9, 7}, {8});
  OK(CreateOperation(graph(8, 1, 1, {sum, attention}), &both.operation));
  test.attention.operation = nullptr;
  REFUSED(run(both.operation,
              pack({test.row, test.row, test.row, test.cache, test.value_cache, test.token_offset,
                    lengths, test.layer},
                   {test.out}),
              test.machine.context),
          ERROR_INVALID_TENSOR_ADDR,
          "TestGraph: node 1, SelfAttentionOperation: input 6 (seqLen) i32[1]: hostData is null");
}

}  // namespace
