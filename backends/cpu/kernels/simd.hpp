// Loads, stores, arithmetic and reductions on vectors of W lanes; a Tail never touches memory
// beyond its lanes. The last argument 4 of the 512-bit built-ins means the current rounding mode.
#pragma once
#include "types.hpp"

namespace gd {

#if defined(GD_AVX512)
using Shorts = short __attribute__((vector_size(2 * W)));
using Chars = char __attribute__((vector_size(W)));
#endif

GD_INLINE F splat(float f) { return f - F{}; }
GD_INLINE I splat_i(int32_t i) { return i - I{}; }
GD_INLINE F to_f(I i) { return __builtin_convertvector(i, F); }
GD_INLINE I to_i(F f) { return __builtin_convertvector(f, I); }
GD_INLINE I lane_index() {
  I i;
  for (int l = 0; l < W; ++l) i[l] = l;
  return i;
}
GD_INLINE I valid(Full) { return splat_i(-1); }
GD_INLINE I valid(Tail t) { return lane_index() < splat_i(t.n); }
GD_INLINE int lane_count(Full) { return W; }
GD_INLINE int lane_count(Tail t) { return t.n; }

template <class V, class E> GD_INLINE V load_raw(const E* p, Full) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class E> GD_INLINE V load_raw(const E* p, Tail t) {
#if defined(GD_AVX512)
  const uint16_t m = uint16_t((1u << t.n) - 1);
  if constexpr (sizeof(E) == 4) return (V)__builtin_ia32_loaddqusi512_mask((const int*)p, I{}, m);
  if constexpr (sizeof(E) == 2)
    return (V)__builtin_ia32_loaddquhi256_mask((const short*)p, Shorts{}, m);
  if constexpr (sizeof(E) == 1)
    return (V)__builtin_ia32_loaddquqi128_mask((const char*)p, Chars{}, m);
#elif defined(GD_AVX2)
  if constexpr (sizeof(E) == 4) return (V)__builtin_ia32_maskloadps256((const F*)p, valid(t));
#endif
  V v = {};
  __builtin_memcpy(&v, p, unsigned(t.n) * sizeof(E));
  return v;
}
template <class E, class V> GD_INLINE void store_raw(E* p, V v, Full) {
  __builtin_memcpy(p, &v, sizeof(V));
}
template <class E, class V> GD_INLINE void store_raw(E* p, V v, Tail t) {
#if defined(GD_AVX512)
  const uint16_t m = uint16_t((1u << t.n) - 1);
  if constexpr (sizeof(E) == 4) return __builtin_ia32_storedqusi512_mask((int*)p, (I)v, m);
  if constexpr (sizeof(E) == 2) return __builtin_ia32_storedquhi256_mask((short*)p, (Shorts)v, m);
  if constexpr (sizeof(E) == 1) return __builtin_ia32_storedquqi128_mask((char*)p, (Chars)v, m);
#elif defined(GD_AVX2)
  if constexpr (sizeof(E) == 4) return __builtin_ia32_maskstoreps256((F*)p, valid(t), (F)v);
#endif
  __builtin_memcpy(p, &v, unsigned(t.n) * sizeof(E));
}

GD_INLINE F from_bf16_bits(H h) { return (F)(__builtin_convertvector(h, U) << 16); }
// Round to nearest even; a NaN stays one (its quiet bit is set).
GD_INLINE U bf16_bits(F f) {
  const U u = (U)f;
  const U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return f != f ? (u >> 16) | 0x40 : rounded;
}
GD_INLINE F round_to_bf16(F f) { return (F)(bf16_bits(f) << 16); }

template <class L> GD_INLINE F load(const float* p, L l) { return load_raw<F>(p, l); }
template <class L> GD_INLINE I load(const int32_t* p, L l) { return load_raw<I>(p, l); }
template <class L> GD_INLINE F load(const bf16* p, L l) {
  return from_bf16_bits(load_raw<H>(p, l));
}
// GCC widens bytes one by one where it is left to it.
template <class L> GD_INLINE F load(const int8_t* p, L l) {
#if defined(GD_AVX512)
  return to_f((I)__builtin_ia32_pmovsxbd512_mask(load_raw<Chars>(p, l), I{}, 0xffff));
#elif defined(GD_AVX2)
  using Half = long long __attribute__((vector_size(16)));
  using Chars = char __attribute__((vector_size(16)));
  const Half bytes = {load_raw<long long>(p, l), 0};
  return to_f((I)__builtin_ia32_pmovsxbd256((Chars)bytes));
#else
  return to_f(__builtin_convertvector(load_raw<SB>(p, l), I));
#endif
}
// A bool loads as a mask of 0 or -1.
template <class L> GD_INLINE I load(const uint8_t* p, L l) {
  return __builtin_convertvector(load_raw<B>(p, l), I) != splat_i(0);
}
template <class L> GD_INLINE void store(float* p, F v, L l) { store_raw(p, v, l); }
template <class L> GD_INLINE void store(int32_t* p, I v, L l) { store_raw(p, v, l); }
template <class L> GD_INLINE void store(bf16* p, F v, L l) {
  store_raw(p, __builtin_convertvector(bf16_bits(v), H), l);
}
template <class L> GD_INLINE void store(uint8_t* p, I mask, L l) {
  store_raw(p, __builtin_convertvector((U)mask & 1, B), l);
}

GD_INLINE F fma(F a, F b, F c) {
#if defined(GD_AVX512)
  return __builtin_ia32_vfmaddps512_mask(a, b, c, 0xffff, 4);
#elif defined(GD_AVX2)
  return __builtin_ia32_vfmaddps256(a, b, c);
#else
  return a * b + c;
#endif
}
// The machine's own max and min: where either operand is NaN they return b.
GD_INLINE F raw_max(F a, F b) {
#if defined(GD_AVX512)
  return __builtin_ia32_maxps512_mask(a, b, F{}, 0xffff, 4);
#elif defined(GD_AVX2)
  return __builtin_ia32_maxps256(a, b);
#else
  return a > b ? a : b;
#endif
}
GD_INLINE F raw_min(F a, F b) {
#if defined(GD_AVX512)
  return __builtin_ia32_minps512_mask(a, b, F{}, 0xffff, 4);
#elif defined(GD_AVX2)
  return __builtin_ia32_minps256(a, b);
#else
  return a < b ? a : b;
#endif
}
// NaN in either operand gives NaN, as in torch.
GD_INLINE F v_max(F a, F b) { return a != a ? a : raw_max(a, b); }
GD_INLINE F v_min(F a, F b) { return a != a ? a : raw_min(a, b); }
GD_INLINE I v_max(I a, I b) { return a > b ? a : b; }
GD_INLINE I v_min(I a, I b) { return a < b ? a : b; }
GD_INLINE F v_abs(F a) { return (F)((I)a & 0x7fffffff); }
GD_INLINE I v_abs(I a) { return a < 0 ? (I)(0 - (U)a) : a; }
GD_INLINE F v_sqrt(F a) {
#if defined(GD_AVX512)
  return __builtin_ia32_sqrtps512_mask(a, F{}, 0xffff, 4);
#elif defined(GD_AVX2)
  return __builtin_ia32_sqrtps256(a);
#else
  for (int l = 0; l < W; ++l) a[l] = __builtin_sqrtf(a[l]);
  return a;
#endif
}
GD_INLINE F v_rsqrt(F a) { return 1.f / v_sqrt(a); }
// From 2^23 on every float is whole; below it the conversion to int is exact.
GD_INLINE F v_floor(F a) {
  const F t = to_f(to_i(a));
  const F down = t > a ? t - 1.f : t;
  return v_abs(a) < 8388608.f ? (F)((I)down | ((I)a & splat_i(int32_t(0x80000000)))) : a;
}

// A fixed tree of halves, so the result does not depend on the width of the machine's own
// reduction.
GD_INLINE float sum(F v) {
  for (int s = W / 2; s > 0; s /= 2) v = v + __builtin_shuffle(v, lane_index() ^ s);
  return v[0];
}
GD_INLINE float max_of(F v) {
  for (int s = W / 2; s > 0; s /= 2) v = v_max(v, __builtin_shuffle(v, lane_index() ^ s));
  return v[0];
}
GD_INLINE float min_of(F v) {
  for (int s = W / 2; s > 0; s /= 2) v = v_min(v, __builtin_shuffle(v, lane_index() ^ s));
  return v[0];
}
GD_INLINE bool any(I mask) {
#if defined(GD_AVX2)
  return __builtin_ia32_movmskps256((F)mask) != 0;
#elif defined(GD_AVX512)
  return __builtin_ia32_cvtd2mask512(mask) != 0;
#else
  int bits = 0;
  for (int l = 0; l < W; ++l) bits |= mask[l];
  return bits != 0;
#endif
}
GD_INLINE F keep(F v, Full, float) { return v; }
GD_INLINE F keep(F v, Tail t, float fill) { return valid(t) ? v : splat(fill); }
GD_INLINE I keep(I v, Full, int32_t) { return v; }
GD_INLINE I keep(I v, Tail t, int32_t fill) { return valid(t) ? v : splat_i(fill); }

// body(i, Full{}) for whole vectors, then body(i, Tail{r}) for what is left. The mask changes
// nothing: it tells the compiler that a tail is shorter than a vector.
template <class Body> GD_INLINE void for_lanes(i64 n, Body body) {
  i64 i = 0;
  for (; i + W <= n; i += W) body(i, Full{});
  if (i < n) body(i, Tail{int((n - i) & (W - 1))});
}

}  // namespace gd

#include "math.hpp"
