// Every operation on odd shapes in buffers of exact size, so that sanitizers see each access beyond
// one. What comes out is compared elsewhere.
#include <cstdio>
#include <initializer_list>
#include <vector>
#include "ops_driver.cpp"

namespace {

int failures = 0;

// A tensor with memory of its own: small numbers, or given ones.
struct Tensor {
  Plain plain{};
  std::unique_ptr<uint8_t[]> memory;

  Tensor(aclDataType dtype, std::initializer_list<int64_t> sizes, aclFormat format) {
    plain.dtype = dtype;
    plain.format = format;
    for (int64_t size : sizes) plain.sizes[plain.dims++] = size;
    Allocate();
  }
  explicit Tensor(const Plain& desc) : plain(desc) { Allocate(); }

  void Allocate() {
    const atb::Tensor tensor = tensor_of(plain);
    memory.reset(new uint8_t[tensor.dataSize]());
    plain.device = memory.get();
    auto* halves = reinterpret_cast<uint16_t*>(memory.get());
    const bool sixteen = plain.dtype == ACL_FLOAT16 || plain.dtype == ACL_BF16;
    for (uint64_t i = 0; sixteen && i < tensor.dataSize / 2; ++i)
      halves[i] = static_cast<uint16_t>(0x3800 + i % 64);
  }
};

Tensor f16(std::initializer_list<int64_t> sizes) { return {ACL_FLOAT16, sizes, ACL_FORMAT_ND}; }
Tensor bf16(std::initializer_list<int64_t> sizes) { return {ACL_BF16, sizes, ACL_FORMAT_ND}; }
Tensor f32(std::initializer_list<int64_t> sizes) { return {ACL_FLOAT, sizes, ACL_FORMAT_ND}; }
Tensor nz(std::initializer_list<int64_t> sizes) {
  return {ACL_FLOAT16, sizes, ACL_FORMAT_FRACTAL_NZ};
}
Tensor ints(const std::vector<int32_t>& values, bool host = false) {
  Tensor made(ACL_INT32, {int64_t(values.size())}, ACL_FORMAT_ND);
  std::memcpy(made.memory.get(), values.data(), values.size() * sizeof(int32_t));
  if (host) made.plain.host = made.plain.device;
  return made;
}
Tensor shaped(Tensor tensor, std::initializer_list<int64_t> sizes) {
  tensor.plain.dims = 0;
  for (int64_t size : sizes) tensor.plain.sizes[tensor.plain.dims++] = size;
  return tensor;
}
Tensor triangle() {
  Tensor made = f16({128, 128});
  auto* halves = reinterpret_cast<uint16_t*>(made.memory.get());
  for (int row = 0; row < 128; ++row)
    for (int column = 0; column < 128; ++column)
      halves[row * 128 + column] = column > row ? 0xfbff : 0;
  return made;
}

template <class... Tensors>
std::vector<Tensor> list(Tensors&&... tensors) {
  std::vector<Tensor> made;
  (made.push_back(std::move(tensors)), ...);
  return made;
}

// `in_place` are the inputs that the outputs are.
void run(const char* name, const char* fields, const std::vector<Tensor>& inputs,
         const std::vector<size_t>& in_place = {}) {
  std::vector<Plain> in, out(8);
  for (const Tensor& input : inputs) in.push_back(input.plain);
  void* handle = nullptr;
  int32_t count = 0;
  const auto size = static_cast<int32_t>(in.size());
  int32_t status = ops_create(name, fields, &handle);
  if (status == 0) status = ops_infer(handle, in.data(), size, out.data(), &count);
  std::vector<Tensor> made;
  for (size_t i = 0; status == 0 && i < size_t(count); ++i) {
    if (i >= in_place.size()) made.emplace_back(out[i]);
    out[i].device = i < in_place.size() ? in[in_place[i]].device : made.back().plain.device;
  }
  if (status == 0) status = ops_execute(handle, in.data(), size, out.data(), count);
  if (handle != nullptr) ops_destroy(handle);
  if (status == 0) return;
  ++failures;
  std::printf("%s: %d %s\n", name, status, ops_error());
}

void linear() {
  for (const int64_t rows : {1, 2, 3, 4, 5, 21}) {
    run("Linear", "hasBias=0", list(f16({rows, 37}), f16({29, 37})));
    run("Linear", "transposeB=0", list(bf16({rows, 37}), bf16({37, 29}), bf16({29})));
    run("Linear", "hasBias=0", list(f16({rows, 37}), nz({1, 3, 32, 16})));
    run("Linear", "hasBias=0\ntransposeB=0", list(f16({rows, 37}), nz({1, 2, 48, 16})));
    run("Linear", "hasBias=0", list(f32({rows, 5}), f32({3, 5})));
  }
  run("Linear", "transposeA=1\nhasBias=0", list(f16({2, 5, 3}), f16({7, 5})));
}

void rows() {
  run("RmsNorm", "layerType=1", list(f16({3, 48}), f16({48})));
  run("RmsNorm", "layerType=2\npreNormParam.hasBias=1",
      list(bf16({3, 48}), bf16({48}), bf16({3, 48}), bf16({1, 48})));
  run("RmsNorm", "layerType=3", list(f16({3, 48}), f16({3, 48}), f16({48})));
  run("LayerNorm", "layerType=1\nnormParam.beginNormAxis=1",
      list(f16({3, 37}), f16({37}), f16({37})));
  run("Softmax", "axes=1", list(f16({3, 37, 2})));
  for (const char* fields : {"rotaryCoeff=2", "rotaryCoeff=4", "rotaryCoeff=20"})
    run("Rope", fields, list(f16({3, 60}), f16({3, 20}), f32({3, 20}), f32({3, 20}), ints({3})));
}

void elements() {
  for (const char* fields : {"activationType=2", "activationType=3", "activationType=4"})
    run("Activation", fields, list(f16({3, 37})));
  run("Activation", "activationType=6\ndim=-1", list(bf16({3, 38})));
  for (const char* fields : {"elewiseType=8", "elewiseType=9", "elewiseType=10", "elewiseType=15"})
    run("Elewise", fields, list(f16({3, 5, 7}), f16({5, 1})));
  run("Elewise", "elewiseType=8", list(ints({2147483647}), ints({1, 2})));
  run("Elewise", "elewiseType=1\noutTensorType=27", list(f32({37})));
  run("Elewise", "elewiseType=1\noutTensorType=0", list(f16({37})));
}

void moves() {
  run("Split", "splitDim=1\nsplitNum=3\nsplitSizes=1 4 2", list(f16({3, 7})));
  run("Concat", "concatDim=1", list(f16({3, 7}), f16({3, 2})));
  run("Gather", "", list(f16({3, 7}), ints({2, 0, 2})));
  run("Transpose", "perm=2 0 1", list(f16({3, 7, 5})));
  run("Slice", "offsets=1 -3\nsize=2 -1", list(f16({3, 7})));
  run("Transdata", "transdataType=2", list(f16({3, 21})));
  run("Transdata", "transdataType=1\noutCrops=3 21", list(nz({1, 2, 16, 16})));
}

void caches() {
  run("ReshapeAndCache", "", list(f16({3, 2, 24}), f16({3, 2, 24}), f16({4, 5, 2, 24}),
                                  f16({4, 5, 2, 24}), ints({19, -1, 3})), {2, 3});
  run("ReshapeAndCache", "kvCacheCfg=2", list(f16({3, 2, 24}), f16({3, 2, 24}), nz({4, 3, 16, 16}),
                                              nz({4, 3, 16, 16}), ints({63, -1, 3})), {2, 3});
  run("KvCache", "", list(f16({3, 48}), ints({1}), f16({2, 2, 4, 48}), ints({4, 3}),
                          ints({1, 2})));
}

void attention() {
  const char* paged = "headNum=4\nkvHeadNum=2";
  run("PagedAttention", paged,
      list(f16({2, 4, 24}), f16({4, 5, 2, 24}), f16({4, 5, 2, 24}),
           shaped(ints({3, 1, 0, 9}), {2, 2}), ints({10, 4}, true)));
  run("SelfAttention", "calcType=3\nheadNum=4\nkvHeadNum=2\nmaskType=3\nisTriuMask=1",
      list(f16({7, 4, 24}), f16({7, 2, 24}), f16({7, 2, 24}), triangle(), ints({3, 4}, true)));
  run("SelfAttention", "calcType=3\nheadNum=4\nkvHeadNum=2\nmaskType=1",
      list(bf16({7, 96}), bf16({7, 48}), bf16({7, 48}), bf16({4, 4}), ints({3, 4}, true)));
  run("SelfAttention", "headNum=4\nkvHeadNum=2\nmaskType=1",
      list(f16({3, 96}), f16({3, 48}), f16({3, 48}), f16({1, 2, 9, 48}), f16({1, 2, 9, 48}),
           f16({2, 2, 9}), ints({9, 2}, true), ints({1, 2}, true), ints({0})));
  atb_emulation_set_soc("Ascend310P3");
  run("PagedAttention", paged,
      list(f16({2, 4, 24}), nz({4, 3, 16, 16}), nz({4, 3, 16, 16}),
           shaped(ints({3, 1, 0, 9}), {2, 2}), ints({32, 16}, true)));
  run("SelfAttention", "headNum=4\nkvHeadNum=2",
      list(f16({3, 96}), f16({3, 48}), f16({3, 48}), nz({1, 2, 3, 16, 16}), nz({1, 2, 3, 16, 16}),
           ints({16, 2}, true), ints({1, 2}, true), ints({0})));
  atb_emulation_set_soc("Ascend910B");
}

}  // namespace

int main() {
  linear();
  rows();
  elements();
  moves();
  caches();
  attention();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
