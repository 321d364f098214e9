// How the emulation reaches the other ranks: by a function that the process sets, where ATB has a
// communicator of its own.
#pragma once
#include <cstdint>
#include "atb/types.h"

namespace emulation {

// As gdsl_exchange in abi.h: the sum (kind 0) of `outer * inner` numbers of every rank.
struct Exchange {
  int kind, dtype;
  const void* source;
  void* target;
  int64_t outer, inner;
};
using Exchanger = int (*)(void* context, const void* what);

// Adds up the numbers of all ranks; the target may be the source.
atb::Status all_reduce(aclDataType dtype, const void* source, void* target, int64_t count);

}  // namespace emulation
