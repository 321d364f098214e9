// What shapes say: numbers of elements and bytes.
#pragma once
#include <algorithm>
#include <cstdint>
#include "atb/types.h"

namespace emulation {

// Bytes of an element, 0 where it is not known.
uint64_t size_of(aclDataType dtype);
// The last size of a tensor in NZ: 16, and 32 for int8.
int64_t fractal(aclDataType dtype);
// Elements in memory. In NZ a shape of up to 3 sizes is the logical one, whose last two are padded.
// 0 where a size is not positive, UINT64_MAX where it does not fit.
uint64_t elements(const atb::TensorDesc& desc);
bool same(const atb::Dims& one, const atb::Dims& other);
bool same(const atb::TensorDesc& one, const atb::TensorDesc& other);

}  // namespace emulation
