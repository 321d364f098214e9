// Random data, buffers of exact size (so that a sanitizer sees every overrun) and comparison with a
// double reference.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <memory>
#include <vector>
#include "simd.hpp"
#include "team.hpp"

namespace check {

using gd::bf16;
using gd::i64;

inline int failures = 0;
inline uint64_t state = 88172645463325252ull;

inline uint64_t next() {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}
inline i64 below(i64 n) { return i64(next() % uint64_t(n)); }
inline double uniform() { return double(next() >> 11) / 4503599627370496.0 - 1; }  // [-1, 1)

inline double value(float f) { return f; }
inline double value(bf16 h) { return gd::to_float(h); }
inline double value(int32_t i) { return i; }
inline double value(uint8_t b) { return b; }
inline void set(float& f, double d) { f = float(d); }
inline void set(bf16& h, double d) { h = gd::to_bf16(float(d)); }

// Exactly n elements on the heap.
template <class T> struct Buffer {
  std::unique_ptr<T[]> p;
  i64 n;
  explicit Buffer(i64 count) : p(new T[size_t(count)]), n(count) {}
  T* get() const { return p.get(); }
  T& operator[](i64 i) const { return p[size_t(i)]; }
};
template <class T> Buffer<T> random(i64 n, double scale = 1) {
  Buffer<T> b(n);
  for (i64 i = 0; i < n; ++i) set(b[i], uniform() * scale);
  return b;
}
template <class T> Buffer<T> filled(i64 n, double with) {
  Buffer<T> b(n);
  for (i64 i = 0; i < n; ++i) set(b[i], with);
  return b;
}
inline Buffer<int32_t> ids(i64 n, i64 limit, i64 from = 0) {
  Buffer<int32_t> b(n);
  for (i64 i = 0; i < n; ++i) b[i] = int32_t(from + below(limit - from));
  return b;
}
// 64-byte aligned scratch with exactly this many bytes behind it.
struct Scratch {
  char* p;
  explicit Scratch(i64 bytes) : p(nullptr) {
    if (posix_memalign(reinterpret_cast<void**>(&p), 64, size_t(bytes < 1 ? 1 : bytes)) != 0)
      abort();
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() { free(p); }
};

template <class T> constexpr double tolerance = gd::same<T, bf16>::value ? 4e-3 : 3e-6;

inline void fail(const char* what, i64 a, i64 b, i64 c, double got, double want) {
  if (++failures <= 20)
    printf("FAILED %s (%ld, %ld, %ld): got %.9g, wanted %.9g\n", what, long(a), long(b), long(c),
           got, want);
}
inline void expect(bool good, const char* what, i64 a = 0, i64 b = 0, i64 c = 0) {
  if (!good) fail(what, a, b, c, 0, 1);
}
// |got - want| against the largest |want|; the three numbers name the case.
template <class T>
void close(const Buffer<T>& got, const std::vector<double>& want, double bound, const char* what,
           i64 a = 0, i64 b = 0, i64 c = 0) {
  double top = 1e-30;
  for (double w : want) top = fmax(top, fabs(w));
  for (i64 i = 0; i < got.n; ++i)
    if (!(fabs(value(got[i]) - want[size_t(i)]) <= bound * top))
      return fail(what, a, b, c, value(got[i]), want[size_t(i)]);
}
template <class T>
void equal(const Buffer<T>& got, const std::vector<double>& want, const char* what, i64 a = 0,
           i64 b = 0, i64 c = 0) {
  for (i64 i = 0; i < got.n; ++i)
    if (value(got[i]) != want[size_t(i)])
      return fail(what, a, b, c, value(got[i]), want[size_t(i)]);
}

inline int finish(const char* name) {
  printf("%s: %d lanes, %d failures\n", name, gd::W, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check
