// What generated code includes: every kernel, and the small helpers that only generated code needs.
#pragma once
#include "attention.hpp"
#include "kv.hpp"
#include "matmul.hpp"
#include "matmul_batched.hpp"
#include "matmul_experts.hpp"
#include "misc.hpp"
#include "simd.hpp"
#include "team.hpp"
#include "workspace.hpp"

namespace gd {

// Which of the two parts of a reduction a vector belongs to.
template <int K> struct Side {
  static constexpr int value = K;
};
// As for_lanes, but two vectors a turn, whose reductions do not wait for each other.
template <class Body> GD_INLINE void for_two_sides(i64 n, Body body) {
  i64 i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    body(i, Full{}, Side<0>{});
    body(i + W, Full{}, Side<1>{});
  }
  for_lanes(n - i, [&](i64 at, auto lanes) { body(i + at, lanes, Side<0>{}); });
}

// Columns of a row of scratch, so that rows of different threads share no cache line.
inline i64 padded(i64 n) { return (n + 15) / 16 * 16; }

// A row scalar as a vector of equal lanes.
inline F load_splat(const float* p) { return splat(*p); }
inline F load_splat(const bf16* p) { return splat(load(p, Tail{1})[0]); }
inline I load_splat(const int32_t* p) { return splat_i(*p); }
inline I load_splat(const uint8_t* p) { return splat_i(*p ? -1 : 0); }

}  // namespace gd
