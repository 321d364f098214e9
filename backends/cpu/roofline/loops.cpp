// What this machine can do at most: reading memory, and multiply-adds whose operands stay in
// registers. Every loop runs on all threads and returns how many bytes or operations that were;
// its caller has the clock. Work for the compiler to leave out is kept by adding it up to `sink`.
#include "matmul_tile.hpp"
#include "team.hpp"

namespace {
using namespace gd;

double sink = 0;
void keep_result(double value) {
#pragma omp critical
  sink += value;
}

// A vector of whole numbers to be multiplied, and how many of them it holds.
#if defined(GD_AVX512)
using Bytes = char __attribute__((vector_size(64)));
using Pairs = short __attribute__((vector_size(64)));
#elif defined(GD_AVX2)
using Bytes = char __attribute__((vector_size(32)));
using Pairs = short __attribute__((vector_size(32)));
#endif

// acc + the dot product of four int8, or the shortest sequence of instructions for it.
GD_INLINE I dot4(I acc, I a, I b) {
#if defined(GD_AVX512) && defined(__AVX512VNNI__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
#elif defined(GD_AVX2) && defined(__AVXVNNI__)
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
  return acc;
#elif defined(GD_AVX512)
  const Pairs ones = 1 - Pairs{};
  const auto pairs = __builtin_ia32_pmaddubsw512_mask((Bytes)a, (Bytes)b, Pairs{}, -1);
  return acc + (I)__builtin_ia32_pmaddwd512_mask(pairs, ones, I{}, -1);
#elif defined(GD_AVX2)
  const Pairs ones = 1 - Pairs{};
  return acc + (I)__builtin_ia32_pmaddwd256(__builtin_ia32_pmaddubsw256((Bytes)a, (Bytes)b), ones);
#else
  return acc + a * b;
#endif
}
#if defined(GD_AVX512) || defined(GD_AVX2)
constexpr int whole_operations = 8;
#else
constexpr int whole_operations = 2;
#endif

struct SumF32 {
  using Vector = F;
  static constexpr int operations = 2 * W;
  static GD_INLINE F add(F acc, F a, F b) { return fma(a, b, acc); }
};
struct SumBf16 {
  using Vector = F;
  static constexpr int operations = 4 * W;
  static GD_INLINE F add(F acc, F a, F b) { return dot2(acc, (I)a, (I)b); }
};
struct SumInt8 {
  using Vector = I;
  static constexpr int operations = whole_operations * W;
  static GD_INLINE I add(I acc, I a, I b) { return dot4(acc, a, b); }
};

// The compiler takes it that the vector is another one now, so that it makes no product only once.
template <class Vector> GD_INLINE void renew(Vector& v) {
#if defined(__x86_64__) || defined(__i386__)
  __asm__("" : "+v"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#else
  __asm__("" : "+m"(v));
#endif
}

// `Chains` sums that do not wait for each other.
template <class Kind, int Chains> double chains(const Team& team, i64 turns) {
  using Vector = typename Kind::Vector;
  Vector acc[Chains] = {}, a = {}, b = {};
  for (i64 turn = 0; turn < turns; ++turn)
#pragma GCC unroll 24
    for (int c = 0; c < Chains; ++c) {
      renew(a);
      renew(b);
      acc[c] = Kind::add(acc[c], a, b);
    }
  Vector total = acc[0];
  for (int c = 1; c < Chains; ++c) total = total + acc[c];
  double result = 0;
  for (int l = 0; l < W; ++l) result += double(total[l]);
  keep_result(result);
  return double(team.count) * double(turns) * Chains * Kind::operations;
}

template <class Kind, int Chains> double multiply_adds(int threads, i64 turns) {
  double done = 0;
  run_team(threads, [&](const Team& team) {
    const double all = chains<Kind, Chains>(team, turns);
    if (team.id == 0) done = all;
  });
  return done;
}

// The sum of a thread's vectors, which are read as `Streams` that lie one behind the other.
template <int Streams> float sum_streams(const float* p, i64 vectors) {
  constexpr int each = 8 / Streams > 2 ? 8 / Streams : 2;
  const i64 length = vectors / Streams / each * each;
  F acc[Streams][each] = {};
  for (i64 i = 0; i < length; i += each)
#pragma GCC unroll 8
    for (int s = 0; s < Streams; ++s) {
      const float* at = p + (s * length + i) * W;
      for (int line = 0; line < each * W; line += 16) __builtin_prefetch(at + 1024 + line);
#pragma GCC unroll 8
      for (int v = 0; v < each; ++v) acc[s][v] = acc[s][v] + load(at + v * W, Full{});
    }
  F total = {};
  for (int s = 0; s < Streams; ++s)
    for (int v = 0; v < each; ++v) total = total + acc[s][v];
  return sum(total);
}

template <int Streams> double read_all(const float* p, i64 vectors, int threads) {
  run_team(threads, [&](const Team& team) {
    const Range mine = team.share(vectors);
    keep_result(double(sum_streams<Streams>(p + mine.begin * W, mine.end - mine.begin)));
  });
  return double(vectors) * W * 4;
}
}  // namespace

extern "C" {
// Reads `count` floats, as 1, 2, 4 or 8 streams a thread: the bytes.
double gdsl_read(const float* p, int64_t count, int streams, int threads) {
  const i64 vectors = count / W;
  if (streams == 1) return read_all<1>(p, vectors, threads);
  if (streams == 2) return read_all<2>(p, vectors, threads);
  if (streams == 4) return read_all<4>(p, vectors, threads);
  return read_all<8>(p, vectors, threads);
}
// Multiplications and additions of f32, of bf16 (0 where there is no dot product of them) and of
// int8, in so many turns.
double gdsl_f32(int64_t turns, int threads) {
  return multiply_adds<SumF32, W == 16 ? 24 : 12>(threads, turns);
}
double gdsl_bf16([[maybe_unused]] int64_t turns, [[maybe_unused]] int threads) {
#if defined(GD_BF16_DOT)
  return multiply_adds<SumBf16, W == 16 ? 24 : 12>(threads, turns);
#else
  return 0;
#endif
}
double gdsl_int8(int64_t turns, int threads) {
  return multiply_adds<SumInt8, W == 16 ? 24 : 8>(threads, turns);
}
}
