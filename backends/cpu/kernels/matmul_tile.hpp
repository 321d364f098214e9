// The register-blocked inner loops of every matrix product, and the packed layout of weights.
//
// Packed weights are 32-bit words in panels of NB columns: [ceil(n / NB)][words of k][NB].  A word
// is one f32, or two bf16 that follow each other along k (the first in the low half).  Columns and
// k are padded with zeros.  The layout serves the bf16 dot product as it is; without that
// instruction a word unpacks into two f32 with one shift and one mask.
#pragma once
#include "simd.hpp"

namespace gd {

constexpr int V = W == 16 ? 4 : 2;  // vectors across a panel
constexpr int NB = V * W;           // columns of a panel
constexpr int R = 6;  // rows of the largest tile: R * V accumulators fit the registers

template <class T> constexpr int per_word = 4 / int(sizeof(T));
template <class T> constexpr i64 words(i64 k) { return (k + per_word<T> - 1) / per_word<T>; }
constexpr i64 panels(i64 n) { return (n + NB - 1) / NB; }

GD_INLINE int32_t load_word(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return word;
}
GD_INLINE F low_half(I word) { return (F)(word << 16); }
GD_INLINE F high_half(I word) { return (F)(word & int32_t(0xffff0000)); }

// acc + the dot product of two pairs of bf16.
GD_INLINE F dot2(F acc, I a, I b) {
#if defined(GD_AVX512) && defined(__AVX512BF16__)
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
#else
  return fma(high_half(a), high_half(b), fma(low_half(a), low_half(b), acc));
#endif
}

// acc += a * b, in the register of acc: left to itself the compiler moves accumulators about.
GD_INLINE void add_product(F& acc, F a, F b) {
#if defined(GD_AVX2)
  __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
#else
  acc = fma(a, b, acc);
#endif
}

// What one word of weights means and what it is multiplied with.
struct F32Words {  // x: f32
  static constexpr int x_words = 1;
};
struct PairWords {  // x: f32, two for each word
  static constexpr int x_words = 2;
};
struct DotWords {  // x: pairs of bf16
  static constexpr int x_words = 1;
};

// Where a tile finds word k of row r: rows anywhere, or a strip of R rows side by side.
template <int Rows> struct RowPointers {
  const char* row[Rows];
  template <class Kind> GD_INLINE const char* at(i64 k, int part, int r) const {
    return row[r] + (k * Kind::x_words + part) * 4;
  }
};
struct Strip {
  const char* words;
  template <class Kind> GD_INLINE const char* at(i64 k, int, int r) const {
    return words + (k * R + r) * 4;
  }
};

template <int Rows, class Kind, class X>
GD_INLINE void step(F (&acc)[Rows][V], const X& x, i64 k, const char* w) {
  I word[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) word[v] = load_raw<I>(w + v * W * 4, Full{});
#pragma GCC unroll 2
  for (int part = 0; part < Kind::x_words; ++part) {
    F weight[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      weight[v] = !same<Kind, PairWords>::value ? (F)word[v]
                  : part == 0                   ? low_half(word[v])
                                                : high_half(word[v]);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const I word_x = splat_i(load_word(x.template at<Kind>(k, part, r)));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        if constexpr (same<Kind, DotWords>::value)
          acc[r][v] = dot2(acc[r][v], (I)weight[v], word_x);
        else
          add_product(acc[r][v], (F)word_x, weight[v]);
    }
  }
}

template <int Rows>
GD_INLINE void store_sums(const F (&acc)[Rows][V], float* c, i64 c_stride, bool add) {
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = c + r * c_stride + v * W;
      store(to, add ? acc[r][v] + load(to, Full{}) : acc[r][v], Full{});
    }
}

// Panels that a tile of few rows reads side by side: several streams from memory are faster than
// one, and their independent sums hide the latency of the multiply-add.  One narrow stream is too
// much for the machine's own prefetch, several narrow ones are not.
constexpr int side_panels = 4;  // of one row, two of two rows

// c[Rows][Panels * NB] (+)= x[Rows][count words] times panels that lie `panel_bytes` apart.
template <int Rows, int Panels, class Kind>
GD_NOINLINE void tile(const char* const* rows, const char* w, i64 panel_bytes, i64 count, float* c,
                      i64 c_stride, bool add) {
  F acc[Panels][Rows][V] = {};
  RowPointers<Rows> x;
  for (int r = 0; r < Rows; ++r) x.row[r] = rows[r];
  constexpr int Unroll = Rows == R ? 8 : 4;
  i64 k = 0;
  for (; k + Unroll <= count; k += Unroll, w += Unroll * NB * 4)
#pragma GCC unroll 8
    for (int u = 0; u < Unroll; ++u)
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p) {
        const char* word = w + p * panel_bytes + u * NB * 4;
        if constexpr (Rows <= 4 && (Panels == 1 || W == 16))
          for (int line = 0; line < NB * 4; line += 64) __builtin_prefetch(word + 4096 + line);
        step<Rows, Kind>(acc[p], x, k + u, word);
      }
  for (; k < count; ++k, w += NB * 4)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p) step<Rows, Kind>(acc[p], x, k, w + p * panel_bytes);
#pragma GCC unroll 4
  for (int p = 0; p < Panels; ++p) store_sums(acc[p], c + p * NB, c_stride, add);
}

// c[Rows][NB] (+)= the rows times `count` words of a panel that the first cache has, or nearly.
// Meanwhile it fetches `lines` of what comes next for every 4 words.
template <int Rows, class Kind>
GD_NOINLINE void block_tile(const char* const* rows, i64 offset, const char* w, i64 count,
                            float* c, i64 c_stride, bool add, const char* ahead, int lines) {
  F acc[Rows][V] = {};
  RowPointers<Rows> x;
  for (int r = 0; r < Rows; ++r) x.row[r] = rows[r] + offset;
  i64 k = 0;
  for (; k + 4 <= count; k += 4, w += 4 * NB * 4) {
    for (int i = 0; i < lines; ++i, ahead += 64) __builtin_prefetch(ahead);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step<Rows, Kind>(acc, x, k + u, w + u * NB * 4);
  }
  for (; k < count; ++k, w += NB * 4) step<Rows, Kind>(acc, x, k, w);
  store_sums(acc, c, c_stride, add);
}

// The same for a strip of R rows side by side.  Meanwhile it fetches what comes next: its own sums,
// and `ahead`, a line for each 8 words.
template <class Kind>
GD_NOINLINE void strip_tile(const char* strip, const char* w, i64 count, float* c, i64 c_stride,
                            bool add, const char* ahead) {
  F acc[R][V] = {};
  Strip x = {strip};
  for (int r = 0; r < R; ++r)
    for (int line = 0; line < NB * 4; line += 64) __builtin_prefetch(c + r * c_stride + line / 4);
  i64 k = 0;
  for (; k + 8 <= count; k += 8, w += 8 * NB * 4, x.words += 8 * R * 4, ahead += 64) {
    __builtin_prefetch(ahead);
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) step<R, Kind>(acc, x, u, w + u * NB * 4);
  }
  for (; k < count; ++k, w += NB * 4, x.words += R * 4) step<R, Kind>(acc, x, 0, w);
  store_sums(acc, c, c_stride, add);
}

// One panel for 1 .. R rows; 3 and 5 rows take two tiles.
template <class Kind>
inline void tile_rows(const char* const* rows, int n, const char* w, i64 count, float* c,
                      i64 c_stride, bool add) {
  if (n == R) return tile<R, 1, Kind>(rows, w, 0, count, c, c_stride, add);
  if (n == 4) return tile<4, 1, Kind>(rows, w, 0, count, c, c_stride, add);
  if (n == 2) return tile<2, 1, Kind>(rows, w, 0, count, c, c_stride, add);
  if (n == 1) return tile<1, 1, Kind>(rows, w, 0, count, c, c_stride, add);
  const int done = n == 3 ? 2 : 4;
  tile_rows<Kind>(rows, done, w, count, c, c_stride, add);
  tile_rows<Kind>(rows + done, n - done, w, count, c + done * c_stride, c_stride, add);
}

// One value of a packed weight.
template <class T> GD_INLINE T packed_at(const T* w, i64 k, i64 row, i64 column) {
  const i64 word = (row / NB * words<T>(k) + column / per_word<T>)*NB + row % NB;
  return w[word * per_word<T> + column % per_word<T>];
}
template <class T> i64 packed_bytes(i64 n, i64 k) { return panels(n) * words<T>(k) * NB * 4; }

// w[n, k] row-major, `stride` elements from row to row.
template <class T>
GD_NOINLINE void pack_panels(const T* w, i64 stride, T* dst, i64 n, i64 k, i64 begin, i64 end) {
  constexpr int P = per_word<T>;
  for (i64 panel = begin; panel < end; ++panel) {
    T* to = dst + panel * words<T>(k) * NB * P;
    for (i64 word = 0; word < words<T>(k); ++word)
      for (int c = 0; c < NB; ++c)
        for (int p = 0; p < P; ++p) {
          const i64 row = panel * NB + c, column = word * P + p;
          *to++ = row < n && column < k ? w[row * stride + column] : T{};
        }
  }
}
template <class T> void pack(const T* w, T* dst, i64 n, i64 k) {
  pack_panels(w, k, dst, n, k, 0, panels(n));
}

}  // namespace gd
