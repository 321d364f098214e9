// What generated code includes: every kernel, and the small helpers that only generated code needs.
#pragma once
#include "attention.hpp"
#include "kv.hpp"
#include "matmul.hpp"
#include "matmul_batched.hpp"
#include "misc.hpp"
#include "simd.hpp"
#include "team.hpp"
#include "workspace.hpp"

namespace gd {

// Columns of a row of scratch, so that rows of different threads share no cache line.
inline i64 padded(i64 n) { return (n + 15) / 16 * 16; }

// A row scalar as a vector of equal lanes.
inline F load_splat(const float* p) { return splat(*p); }
inline F load_splat(const bf16* p) { return splat(load(p, Tail{1})[0]); }
inline I load_splat(const int32_t* p) { return splat_i(*p); }
inline I load_splat(const uint8_t* p) { return splat_i(*p ? -1 : 0); }

}  // namespace gd
