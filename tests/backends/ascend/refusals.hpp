// Makes graphs, sets them up with the tensors they say, and prints for each what refused it.
#pragma once

#include <acl/acl.h>
#include <atb/atb_infer.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "runner/graph_build.hpp"

extern "C" void atb_emulation_set_soc(const char* name);
extern "C" const char* atb_emulation_last_error();

namespace refusals {

// Plain arrays: a compiler takes long over vectors of vectors.
struct Given {
  aclDataType dtype;
  aclFormat format;
  bool host;
  uint64_t rank;
  int64_t shape[9];
};

struct Case {
  const char* soc;
  atb::Status (*create)(atb::Operation**, gdsl::GraphNotes*);
  const Given* tensors;
  size_t inputs, outputs;
};

// New tokens of a sequence, their offset, keys of a query: 2 is right for all.
inline std::vector<int32_t>& Twos() {
  static std::vector<int32_t> twos(1 << 20, 2);
  return twos;
}

inline atb::Tensor Filled(const Given& given) {
  atb::Tensor tensor;
  tensor.desc.dtype = given.dtype;
  tensor.desc.format = given.format;
  tensor.desc.shape.dimNum = given.rank;
  for (size_t i = 0; i < given.rank && i < atb::MAX_DIM; ++i)
    tensor.desc.shape.dims[i] = given.shape[i];
  tensor.dataSize = atb::Utils::GetTensorSize(tensor.desc);
  tensor.deviceData = Twos().data();
  if (given.host) tensor.hostData = Twos().data();
  return tensor;
}

inline void Print(const char* stage, atb::Status status) {
  std::printf("%s\t%d\t%s\n", stage, status, status == 0 ? "" : atb_emulation_last_error());
}

inline void Try(const Case& each, atb::Context* context) {
  atb_emulation_set_soc(each.soc);
  atb::Operation* operation = nullptr;
  const atb::Status made = each.create(&operation, nullptr);
  if (made != atb::NO_ERROR) return Print("create", made);
  atb::VariantPack pack;
  pack.inTensors.reserve(each.inputs);
  for (size_t i = 0; i < each.inputs; ++i) pack.inTensors.push_back(Filled(each.tensors[i]));
  for (size_t i = 0; i < each.outputs; ++i)
    pack.outTensors.push_back(Filled(each.tensors[each.inputs + i]));
  uint64_t workspace = 0;
  Print("setup", operation->Setup(pack, workspace, context));
  atb::DestroyOperation(operation);
}

template <size_t N>
int TryAll(const Case (&cases)[N]) {
  atb::Context* context = nullptr;
  if (aclInit(nullptr) != 0 || atb::CreateContext(&context) != atb::NO_ERROR) return 1;
  for (const Case& each : cases) Try(each, context);
  atb::DestroyContext(context);
  return 0;
}

}  // namespace refusals
