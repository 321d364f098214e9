// The vector types that all kernels share.  They are GCC vector extensions, so plain operators work
// on every target and only what those cannot say needs built-in functions; those are called
// directly, since <immintrin.h> alone costs half a second of compile time.
#pragma once
#include <stdint.h>

#define GD_INLINE inline __attribute__((always_inline))
#define GD_NOINLINE __attribute__((noinline, noclone))

// GD_LANES overrides the width, so that the 16-lane algorithms can be run on a machine without
// AVX-512.
#if !defined(GD_LANES)
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define GD_LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define GD_LANES 8
#else
#define GD_LANES 4
#endif
#endif
#if GD_LANES == 16 && defined(__AVX512F__)
#define GD_AVX512 1
#elif GD_LANES == 8 && defined(__AVX2__) && defined(__FMA__)
#define GD_AVX2 1
#endif
// A bf16 dot product of pairs along K: the instruction, or its emulation to run that path
// elsewhere.
#if (defined(GD_AVX512) && defined(__AVX512BF16__)) || defined(GD_EMULATE_BF16_DOT)
#define GD_BF16_DOT 1
#endif

namespace gd {

using i64 = int64_t;
constexpr int W = GD_LANES;

using F = float __attribute__((vector_size(4 * W)));
using I = int32_t __attribute__((vector_size(4 * W)));
using U = uint32_t __attribute__((vector_size(4 * W)));
using D = double __attribute__((vector_size(8 * W)));
using H = uint16_t __attribute__((vector_size(2 * W)));
using B = uint8_t __attribute__((vector_size(W)));
using SB = int8_t __attribute__((vector_size(W)));

struct Full {};
struct Tail {
  int n;  // 1 .. W-1 valid lanes
};

GD_INLINE float bits_to_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
GD_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}

struct bf16 {
  uint16_t bits;
};
GD_INLINE float to_float(float f) { return f; }
GD_INLINE float to_float(bf16 h) { return bits_to_float(uint32_t(h.bits) << 16); }
GD_INLINE bf16 to_bf16(float f) {
  const uint32_t u = float_to_bits(f);
  if (f != f) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
GD_INLINE void put(float* p, float f) { *p = f; }
GD_INLINE void put(bf16* p, float f) { *p = to_bf16(f); }

template <int N> struct Count {
  static constexpr int value = N;
};
template <class A, class C> struct same {
  static constexpr bool value = false;
};
template <class A> struct same<A, A> {
  static constexpr bool value = true;
};

constexpr i64 round_up(i64 n, i64 to) { return (n + to - 1) / to * to; }
constexpr i64 least(i64 a, i64 b) { return a < b ? a : b; }
constexpr i64 most(i64 a, i64 b) { return a > b ? a : b; }

}  // namespace gd
