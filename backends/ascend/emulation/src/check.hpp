// Checks that are the same for single operations and graphs.
#pragma once
#include <string>
#include <vector>
#include "atb/atb_infer.h"
#include "log.hpp"

namespace emulation {

using Descs = atb::SVector<atb::TensorDesc>;
using Tensors = atb::SVector<atb::Tensor>;


// Number of dims, sizes, the blocks of NZ, bytes. The sentence goes on after "input 2 (gamma)".
atb::Status check_desc(const atb::TensorDesc& desc);

// The tensors have these descs.
atb::Status check_same(const std::string& what, const Tensors& found, const Descs& wanted);

// What the last Setup saw.
struct SetUp {
  Descs in, out;
  uint64_t workspace_size = 0;
  atb::Context* context = nullptr;
  bool done = false;

  // Whether Execute may run: Setup, Context, stream, workspace, and the tensors' descs, sizes and
  // addresses.
  atb::Status check(const atb::VariantPack& pack, const uint8_t* workspace,
                    uint64_t given_size, const atb::Context* given_context) const;
};

// The descs of tensors.
Descs descs_of(const Tensors& tensors);

// Whether the memory of two tensors overlaps.
bool overlap(const atb::Tensor& one, const atb::Tensor& other);

}  // namespace emulation
