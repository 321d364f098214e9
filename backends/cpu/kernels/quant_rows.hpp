// Few rows of x beside quantised weights: how they are prepared, and how a word of weights is
// multiplied with them.
//
// Few rows are bound by reading the weights, so little may be done for each of them.  Rows of bf16
// are multiplied as whole numbers of 16 bits with a scale for each block.  Where the format asks for
// rows of 8 bits, weights of 4 bits have them; those of 8 bits would gain nothing by them, and rows
// of any dtype have 16 bits there.  Other rows of f32 are multiplied with weights that become f32 in
// two operations: a weight's float keeps the numbers below it in its word as a fraction, which saves
// a shift, and x is changed so that those add up to nothing.
#pragma once
#include "quant.hpp"

#if defined(GD_AVX512) && defined(__AVX512VNNI__)
#define GD_VNNI 1
#elif defined(GD_AVX512) || defined(GD_AVX2)
#define GD_MADD 1
#endif

namespace gd {
namespace quants {

using S = short __attribute__((vector_size(4 * W)));
using US = unsigned short __attribute__((vector_size(4 * W)));

#if defined(GD_AVX512)
using C = char __attribute__((vector_size(64)));
GD_INLINE S multiply_bytes(I w, I x) {
  return __builtin_ia32_pmaddubsw512_mask((C)w, (C)x, S{}, ~0u);
}
GD_INLINE I multiply_pairs(S a, S b) { return __builtin_ia32_pmaddwd512_mask(a, b, I{}, 0xffff); }
#elif defined(GD_AVX2)
using C = char __attribute__((vector_size(32)));
GD_INLINE S multiply_bytes(I w, I x) { return __builtin_ia32_pmaddubsw256((C)w, (C)x); }
GD_INLINE I multiply_pairs(S a, S b) { return __builtin_ia32_pmaddwd256(a, b); }
#else
GD_INLINE I multiply_pairs(S a, S b) {
  const I low = ((I)((U)a << 16) >> 16) * ((I)((U)b << 16) >> 16);
  return low + ((I)a >> 16) * ((I)b >> 16);
}
#endif

// Compilers add whole numbers in an order of their own, for which the registers are too few.
GD_INLINE void keep_order(I& acc) {
#if defined(GD_MADD)
  __asm__("" : "+v"(acc));
#else
  (void)acc;
#endif
}

// acc + the products of two numbers of 16 bits.
GD_INLINE I add_pairs(I acc, S a, S b) {
#if defined(GD_VNNI)
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
#else
  acc += multiply_pairs(a, b);
  keep_order(acc);
  return acc;
#endif
}
// acc + the products of four bytes each, w of 4 bits and x with a sign.  Where bytes are multiplied
// into halves of 16 bits, those gather there: the room is enough for a block.
GD_INLINE I add_bytes(I acc, I w, I x) {
#if defined(GD_VNNI)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
#elif defined(GD_MADD)
  acc = (I)((S)acc + multiply_bytes(w, x));
  keep_order(acc);
  return acc;
#else
  acc = add_pairs(acc, (S)(w & 0x00ff00ff), (S)((US)x << 8) >> 8);
  return add_pairs(acc, (S)((US)w >> 8), (S)x >> 8);
#endif
}
GD_INLINE I gathered(I acc) {
#if defined(GD_MADD)
  return multiply_pairs((S)acc, S{} + 1);
#else
  return acc;
#endif
}

// A block of a row of x for float products: the numbers as they are multiplied, their sum, and what
// a column's products start from, so that the bias of weights is taken off again.
template <class Q> struct FloatBlock {
  float start, sum;
  float x[Q::block];
};
// The same for integer products, x = scale * q. `start` is what accumulators of shorts hold, and what
// joins the sum of the products of bytes.
template <class Q> struct ShortBlock {
  float scale, sum;
  int32_t start;
  int16_t x[Q::block];
};
template <class Q> struct ByteBlock {
  float scale, sum, start;
  int8_t x[Q::block];
};

// Numbers 0 .. per_word - 1 of a word from its low end on: x[i] belongs to u[i] << bits * i, and a
// weight's float is the sum of those up to its own.  The highest is read with a sign, so its bias
// is less.
template <class Q> GD_INLINE void prepare(const float* x, FloatBlock<Q>& to) {
  constexpr int last = Q::per_word - 1, sign = 1 << (Q::bits - 1);
  float sum = 0, highest = 0;
  for (int begin = 0; begin < Q::block; begin += Q::per_word) {
    float each[Q::per_word + 1], unit = 1;
    for (int i = 0; i <= last; ++i) each[i] = x[begin + (Q::bits == 4 ? number_at(i) : i)];
    each[last + 1] = 0;
    for (int i = 0; i <= last; ++i, unit *= 1.0f / (1 << Q::bits)) {
      to.x[begin + i] = (each[i] - each[i + 1] * (1.0f / (1 << Q::bits))) * unit;
      sum += each[i];
    }
    highest += each[last];
  }
  to.sum = sum;
  to.start = float(sign) * highest - float(Q::bias) * sum;
}

template <class Q> GD_INLINE float largest(const float* x) {
  F top = {};
  for (int i = 0; i < Q::block; i += W) top = v_max(top, v_abs(load(x + i, Full{})));
  return max_of(top);
}

// The numbers of a block divided by the scale, as whole numbers, and their sum.
template <class Q> struct Whole {
  alignas(64) int32_t x[Q::block];
  float sum;
};
template <class Q> GD_INLINE Whole<Q> whole(const float* x, float inverse) {
  Whole<Q> made;
  I sum = {};
  for (int i = 0; i < Q::block; i += W) {
    const I here = to_i(round_small(load(x + i, Full{}) * inverse));
    store(made.x + i, here, Full{});
    sum += here;
  }
  made.sum = gd::sum(to_f(sum));
  return made;
}

template <class Q> GD_INLINE void prepare(const float* x, ByteBlock<Q>& to) {
  const float top = largest<Q>(x);
  const auto q = whole<Q>(x, top > 0 ? 127 / top : 0);
  to.scale = top / 127;
  to.sum = to.scale * q.sum;
  to.start = -float(Q::bias) * to.sum;
  for (int i = 0; i < Q::block; ++i) to.x[i] = int8_t(q.x[i]);
}

// Which number of a word of x stands at place i, so that the pairs of a word are those of weights.
template <class Q> constexpr int paired(int i) {
  return Q::bits == 8 ? i % 2 * 2 + i / 2 : i % 2 * 2 + i / 2 % 2 * 4 + i / 4;
}
// The scale is a power of two, so bf16 down to 1/128 of the largest are kept as they are.
template <class Q> GD_INLINE void prepare(const float* x, ShortBlock<Q>& to) {
  const float top = largest<Q>(x);
  // 2^(14 - exponent) and its inverse, of an exponent more where the largest would be rounded up to
  // 2^15; what is no normal float counts as nothing or as infinite.
  const uint32_t bits = float_to_bits(top), exponent = (bits + 0x100) >> 23;
  const bool finite = bits < 0x7f800000, normal = finite && exponent > 14;
  const float up = normal ? bits_to_float((268 - exponent) << 23) : 0;
  to.scale = normal ? bits_to_float((exponent - 14) << 23) : finite ? 0 : top;
  const auto q = whole<Q>(x, up);
  to.sum = to.scale * q.sum;
  to.start = -Q::bias * int32_t(q.sum);
  for (int begin = 0; begin < Q::block; begin += Q::per_word)
    for (int i = 0; i < Q::per_word; ++i)
      to.x[begin + i] = int16_t(q.x[begin + paired<Q>(i)]);
}

// What a tile does with a word of weights in each of its panels, for every row.
template <class Q> struct FloatRows {
  using Block = FloatBlock<Q>;
  using Acc = F;
  static GD_INLINE F start(const Block& x) { return splat(x.start); }
  static GD_INLINE F sum(F acc, const Block&) { return acc; }
  template <int Rows, int Panels>
  static GD_INLINE void add(F (&acc)[Panels][Rows][V], const Block* const (&x)[Rows], int word,
                            const char* w, i64 panel_bytes) {
    constexpr int last = Q::per_word - 1;
#pragma GCC unroll 8
    for (int i = 0; i <= last; ++i) {
      // Words of several panels are read again: there are too few registers to keep them.
      if constexpr (Panels > 1) __asm__ volatile("" ::: "memory");
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p) {
        F weight[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const U u = load_raw<U>(w + p * panel_bytes + v * W * 4, Full{});
          weight[v] = to_f(
              (I)(i == last ? u ^ 0x80000000 : u & ((2u << (i * Q::bits + Q::bits - 1)) - 1)));
        }
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
          const F number = splat(x[r]->x[word * Q::per_word + i]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[p][r][v] = fma(number, weight[v], acc[p][r][v]);
        }
      }
    }
  }
};

template <class Q> struct ByteRows {
  using Block = ByteBlock<Q>;
  using Acc = I;
  static GD_INLINE I start(const Block&) { return I{}; }
  static GD_INLINE F sum(I acc, const Block& x) {
    return fma(to_f(gathered(acc)), splat(x.scale), splat(x.start));
  }
  template <int Rows, int Panels>
  static GD_INLINE void add(I (&acc)[Panels][Rows][V], const Block* const (&x)[Rows], int word,
                            const char* w, i64 panel_bytes) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const I bytes = splat_i(load_word(x[r]->x + word * Q::per_word + half * 4));
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            const U u = load_raw<U>(w + p * panel_bytes + v * W * 4, Full{});
            acc[p][r][v] = add_bytes(acc[p][r][v], (I)(u >> (half * 4)) & 0x0f0f0f0f, bytes);
          }
      }
  }
};

template <class Q> struct ShortRows {
  using Block = ShortBlock<Q>;
  using Acc = I;
  static GD_INLINE I start(const Block& x) { return splat_i(x.start); }
  static GD_INLINE F sum(I acc, const Block& x) { return to_f(acc) * x.scale; }
  template <int Rows, int Panels>
  static GD_INLINE void add(I (&acc)[Panels][Rows][V], const Block* const (&x)[Rows], int word,
                            const char* w, i64 panel_bytes) {
    constexpr int pairs = Q::per_word / 2;
    const US mask = US{} + ((1 << Q::bits) - 1);
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p, w += panel_bytes)
#pragma GCC unroll 4
      for (int i = 0; i < pairs; ++i) {
        S weight[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const US u = load_raw<US>(w + v * W * 4, Full{}) >> (i * Q::bits);
          weight[v] = (S)(i + 1 < pairs ? u & mask : u);
        }
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
          const S both = (S)splat_i(load_word(x[r]->x + word * Q::per_word + i * 2));
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[p][r][v] = add_pairs(acc[p][r][v], weight[v], both);
        }
      }
  }
};

template <class Q> constexpr bool bytes = Q::int_act && Q::bits == 4;
template <class T, class Q, bool Whole = Q::int_act || same<T, bf16>::value, bool = bytes<Q>>
struct RowsOf {
  using type = FloatRows<Q>;
};
template <class T, class Q> struct RowsOf<T, Q, true, false> {
  using type = ShortRows<Q>;
};
template <class T, class Q> struct RowsOf<T, Q, true, true> {
  using type = ByteRows<Q>;
};

// The first `have` numbers of a row x[k] and zeros as blocks, which lie `step` blocks apart.
template <class Q, class T, class Block>
GD_NOINLINE void prepare_row(const T* x, i64 have, i64 k, Block* to, i64 step) {
  alignas(64) float part[Q::block];
  for (i64 begin = 0; begin < k; begin += Q::block, to += step) {
    if (begin + Q::block <= have) {
      for (int i = 0; i < Q::block; i += W) store(part + i, load(x + begin + i, Full{}), Full{});
    } else {
      __builtin_memset(part, 0, sizeof part);
      for_lanes(have - begin, [&](i64 i, auto l) { store(part + i, load(x + begin + i, l), l); });
    }
    prepare(part, *to);
  }
}

// Bytes of a row of blocks, at least, in every format.
constexpr i64 row_bytes(i64 k) { return (k + 31) / 32 * 2 * i64(sizeof(float)) * (16 + 2); }

}  // namespace quants
}  // namespace gd
