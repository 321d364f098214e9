// Attention and a read of memory behind a C interface, for benchmarks/attention.py.
#include "attention.hpp"

using namespace gd;

// q[b, t, h, d], k and v[b, g, s, d]; causal, the tokens are the last slots.
template <class T, class K>
static void attend(int threads, const T* q, const K* k, const K* v, T* out, const i64* sizes,
                   const int32_t* positions, char* scratch) {
  const i64 dim = sizes[4], width = dim + (same<K, int8_t>::value ? 4 : 0);
  Attention<T, K, K> a = {};
  a.q = q, a.out = out, a.positions = positions;
  a.batch = 1, a.tokens = sizes[0], a.heads = sizes[1], a.kv_heads = sizes[2];
  a.dim = a.value_dim = dim, a.causal = true, a.scale = 1 / __builtin_sqrtf(float(dim));
  a.q_stride[1] = a.out_stride[1] = a.heads * dim, a.q_stride[2] = a.out_stride[2] = dim;
  a.k = {k, {0, width, sizes[3] * width}, sizes[3], nullptr, 0, 0, false};
  a.v = a.k, a.v.p = v;
  run_team(threads, [&](const Team& team) { attention(team, a, scratch); });
}

// Reads `bytes` as so many streams a thread.
template <int Streams> static float read(const Team& team, const char* from, i64 bytes) {
  const Range mine = team.share(bytes / (Streams * W * 4));
  const i64 length = mine.end - mine.begin;
  F sums[Streams] = {};
  for (i64 i = 0; i < length; ++i)
#pragma GCC unroll 8
    for (int s = 0; s < Streams; ++s) {
      const char* at = from + (mine.begin * Streams + length * s + i) * W * 4;
      __builtin_prefetch(at + 4096);
      sums[s] += load_raw<F>(at, Full{});
    }
  float total = 0;
  for (const F& part : sums) total += sum(part);
  return total;
}

extern "C" {
float read_bytes(int threads, const char* from, i64 bytes, int streams) {
  float total = 0;
  run_team(threads, [&](const Team& team) {
    float own = streams == 1 ? read<1>(team, from, bytes) : read<8>(team, from, bytes);
    __atomic_store(&total, &own, __ATOMIC_RELAXED);
  });
  return total;
}
// Multiply-adds of f32 in 12 sums that do not wait for each other.
void multiply_adds(int threads, i64 turns) {
  run_team(threads, [&](const Team&) {
    F acc[12] = {}, a = {}, b = {};
    for (i64 turn = 0; turn < turns; ++turn)
#pragma GCC unroll 12
      for (F& one : acc) {
        __asm__ volatile("" : "+v"(a), "+v"(b));
        one = fma(a, b, one);
      }
    for (F& one : acc) __asm__ volatile("" : "+v"(one));
  });
}
int lanes() { return W; }
i64 attend_scratch(const i64* s, int threads) {
  return attention_scratch(s[0], s[1], s[2], s[4], s[4], 1, threads);
}
#define ATTEND(name, T, K)                                                                      \
  void attend_##name(int threads, const T* q, const K* k, const K* v, T* out, const i64* sizes, \
                     const int32_t* positions, char* scratch) {                                 \
    attend(threads, q, k, v, out, sizes, positions, scratch);                                   \
  }
ATTEND(f32, float, float)
ATTEND(bf16, bf16, bf16)
ATTEND(int8, bf16, int8_t)
}
