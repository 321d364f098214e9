// The kernels behind a C interface, for benchmarks/kernels.py.
#include "attention.hpp"
#include "matmul_quant.hpp"

using namespace gd;

template <class T, class W>
static void linear(int threads, const T* x, const W* w, T* y, i64 rows, i64 n, i64 k,
                   char* scratch) {
  run_team(threads, [&](const Team& team) {
    const W* const weights[1] = {w};
    matmul<1>(team, x, k, weights, rows, n, k, scratch,
              [&](i64 r, i64 c, auto lanes, F sum) { store(y + r * n + c, sum, lanes); });
  });
}

// q[b, t, h, d], k and v[b, g, s, d]; causal, the tokens are the last slots.
template <class T>
static void attend(int threads, const T* q, const T* k, const T* v, T* out, const i64* sizes,
                   char* scratch) {
  Attention<T> a = {};
  a.q = q, a.out = out;
  a.batch = 1, a.tokens = sizes[0], a.heads = sizes[1], a.kv_heads = sizes[2], a.dim = sizes[4];
  a.value_dim = a.dim, a.causal = true, a.scale = 1 / __builtin_sqrtf(float(a.dim));
  a.q_stride[1] = a.out_stride[1] = a.heads * a.dim, a.q_stride[2] = a.out_stride[2] = a.dim;
  a.k = {k, {0, a.dim, sizes[3] * a.dim}, sizes[3], nullptr, 0, 0, false};
  a.v = a.k, a.v.p = v;
  run_team(threads, [&](const Team& team) { attention(team, a, scratch); });
}

// For every format: its bytes, its packing, and a product with rows of bf16 and of f32.
#define QUANT(name, ...)                                                                          \
  i64 packed_bytes_##name(i64 n, i64 k) { return quant_bytes<__VA_ARGS__>(n, k); }                \
  void pack_##name(const int8_t* values, const float* scales, void* to, i64 n, i64 k) {           \
    pack_quant(values, scales, nullptr, static_cast<__VA_ARGS__*>(to), n, k);                     \
  }                                                                                               \
  void linear_##name##_bf16(int threads, const bf16* x, const void* w, bf16* y, i64 rows, i64 n,  \
                            i64 k, char* scratch) {                                               \
    linear(threads, x, static_cast<const __VA_ARGS__*>(w), y, rows, n, k, scratch);               \
  }                                                                                               \
  void linear_##name##_f32(int threads, const float* x, const void* w, float* y, i64 rows, i64 n, \
                           i64 k, char* scratch) {                                                \
    linear(threads, x, static_cast<const __VA_ARGS__*>(w), y, rows, n, k, scratch);               \
  }

extern "C" {
QUANT(int8, Quant<8, 0, false, float, false>)
QUANT(int8_rounded, Quant<8, 0, false, float, true>)
QUANT(int8_32, Quant<8, 32, false, f16, false>)
QUANT(int8_32_rounded, Quant<8, 32, false, f16, true>)
QUANT(int4_32, Quant<4, 32, false, f16, false>)
QUANT(int4_32_rounded, Quant<4, 32, false, f16, true>)

// Reads `bytes` at 8 places at once, as fast as it can be done.
float read_bytes(int threads, const char* from, i64 bytes) {
  float total = 0;
  run_team(threads, [&](const Team& team) {
    const Range mine = team.share(bytes / (8 * W * 4));
    const i64 length = mine.end - mine.begin;
    F sums[8] = {};
    for (i64 i = 0; i < length; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j)
        sums[j] += load_raw<F>(from + (mine.begin * 8 + length * j + i) * W * 4, Full{});
    float own = 0;
    for (const F& part : sums) own += sum(part);
    __atomic_store(&total, &own, __ATOMIC_RELAXED);
  });
  return total;
}
i64 quantised_scratch(i64 rows, i64 n, i64 k, int threads) {
  return quant_scratch(rows, n, k, 1, threads);
}
i64 linear_scratch(i64 rows, i64 n, i64 k, int threads) {
  return matmul_scratch(rows, n, k, 1, threads);
}
i64 attend_scratch(const i64* s, int threads) {
  return attention_scratch(s[0], s[1], s[2], s[4], s[4], 1, threads);
}
i64 packed_bytes_f32(i64 n, i64 k) { return packed_bytes<float>(n, k); }
i64 packed_bytes_bf16(i64 n, i64 k) { return packed_bytes<bf16>(n, k); }
void pack_f32(const float* w, float* to, i64 n, i64 k) { pack(w, to, n, k); }
void pack_bf16(const bf16* w, bf16* to, i64 n, i64 k) { pack(w, to, n, k); }
void linear_f32(int threads, const float* x, const float* w, float* y, i64 rows, i64 n, i64 k,
                char* scratch) {
  linear(threads, x, w, y, rows, n, k, scratch);
}
void linear_bf16(int threads, const bf16* x, const bf16* w, bf16* y, i64 rows, i64 n, i64 k,
                 char* scratch) {
  linear(threads, x, w, y, rows, n, k, scratch);
}
void attend_f32(int threads, const float* q, const float* k, const float* v, float* out,
                const i64* sizes, char* scratch) {
  attend(threads, q, k, v, out, sizes, scratch);
}
void attend_bf16(int threads, const bf16* q, const bf16* k, const bf16* v, bf16* out,
                 const i64* sizes, char* scratch) {
  attend(threads, q, k, v, out, sizes, scratch);
}
}
