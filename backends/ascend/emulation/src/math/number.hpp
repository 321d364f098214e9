// Numbers as they are stored (f16, bf16, f32) and runs of eight of them as floats.
#pragma once
#include <cstdint>
#include <cstring>

namespace emulation {

struct half {
  uint16_t bits;
};
struct bfloat {
  uint16_t bits;
};
using v8 = float __attribute__((vector_size(32)));

inline float float_of_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline uint32_t bits_of_float(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

inline float widen_half(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, rest = h & 0x3ffu;
  const uint32_t quiet = rest != 0 ? 1u << 22 : 0;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | (rest << 13) | quiet);
  if (exponent == 0) return (sign ? -1.f : 1.f) * float(rest) * 0x1p-24f;
  return float_of_bits(sign | ((exponent + 112) << 23) | (rest << 13));
}
// To nearest, ties to even; what is too large becomes infinite.
inline uint16_t narrow_half(float f) {
  const uint32_t bits = bits_of_float(f), size = bits & 0x7fffffffu;
  const auto sign = uint16_t((bits >> 16) & 0x8000u);
  if (size > 0x7f800000u) return uint16_t(sign | 0x7e00u | ((size >> 13) & 0x3ffu));
  if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  // 0.5 has the step of the smallest halves, so the addition rounds.
  if (size < 0x38800000u)
    return uint16_t(sign | (bits_of_float(float_of_bits(size) + 0.5f) - 0x3f000000u));
  return uint16_t(sign | ((size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13));
}
inline uint16_t narrow_bfloat(float f) {
  const uint32_t bits = bits_of_float(f);
  if (f != f) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float get(float f) { return f; }
inline float get(half h) { return widen_half(h.bits); }
inline float get(bfloat b) { return float_of_bits(uint32_t(b.bits) << 16); }
inline void set(float& to, float f) { to = f; }
inline void set(half& to, float f) { to.bits = narrow_half(f); }
inline void set(bfloat& to, float f) { to.bits = narrow_bfloat(f); }

// Results are handed back by reference: returned vectors would tie callers to one instruction set.
inline void load8(const float* p, v8& out) { std::memcpy(&out, p, sizeof out); }
inline void load8(const bfloat* p, v8& out) {
  using Bits = uint32_t __attribute__((vector_size(32)));
  uint16_t __attribute__((vector_size(16))) narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  const Bits wide = __builtin_convertvector(narrow, Bits) << 16;
  std::memcpy(&out, &wide, sizeof out);
}
inline void load8(const half* p, v8& out) {
#if defined(__F16C__)
  short __attribute__((vector_size(16))) narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  out = __builtin_ia32_vcvtph2ps256(narrow);
#else
  for (int i = 0; i < 8; ++i) out[i] = get(p[i]);
#endif
}
inline void store8(float* p, const v8& v) { std::memcpy(p, &v, sizeof v); }
inline void store8(bfloat* p, const v8& v) {
  for (int i = 0; i < 8; ++i) set(p[i], v[i]);
}
inline void store8(half* p, const v8& v) {
#if defined(__F16C__)
  const auto narrow = __builtin_ia32_vcvtps2ph256(v, 0);
  std::memcpy(p, &narrow, sizeof narrow);
#else
  for (int i = 0; i < 8; ++i) set(p[i], v[i]);
#endif
}
inline float sum8(const v8& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

template <class T> void widen(const T* from, float* to, int64_t n) {
  int64_t i = 0;
  for (v8 v; i + 8 <= n; i += 8) {
    load8(from + i, v);
    store8(to + i, v);
  }
  for (; i < n; ++i) to[i] = get(from[i]);
}
template <class T> void narrow(const float* from, T* to, int64_t n) {
  int64_t i = 0;
  for (v8 v; i + 8 <= n; i += 8) {
    load8(from + i, v);
    store8(to + i, v);
  }
  for (; i < n; ++i) set(to[i], from[i]);
}

inline float dot(const float* a, const float* b, int64_t n) {
  v8 first = {}, second = {}, x, y;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    load8(a + i, x);
    load8(b + i, y);
    first += x * y;
    load8(a + i + 8, x);
    load8(b + i + 8, y);
    second += x * y;
  }
  float sum = sum8(first + second);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
inline void add_scaled(float scale, const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (v8 from, to; i + 8 <= n; i += 8) {
    load8(x + i, from);
    load8(y + i, to);
    to += scale * from;
    store8(y + i, to);
  }
  for (; i < n; ++i) y[i] += scale * x[i];
}

}  // namespace emulation
