// Matrix products with quantised weights: few rows by tiles of their own (quant_rows.hpp), and many
// through the blocked path of other weights, which multiplies blocks of weights as f32 or as pairs
// of bf16, or as bytes (matmul_bytes.hpp).
#pragma once
#include "matmul_bytes.hpp"
#include "quant_rows.hpp"

namespace gd {
namespace quants {

// c[rows][c_stride] += the sums of a block, times the scales of the weights.
template <class Q, class Kind, int Rows, int Panels>
GD_INLINE void add_sums(const typename Kind::Acc (&acc)[Panels][Rows][V],
                        const typename Kind::Block* const (&x)[Rows], const char* group,
                        i64 panel_bytes, float* c, i64 c_stride) {
#pragma GCC unroll 4
  for (int p = 0; p < Panels; ++p, group += panel_bytes)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const auto* scales = scales_of<Q>(group) + v * W;
      const F scale = load(scales, Full{});
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        float* to = c + r * c_stride + p * NB + v * W;
        F sum = fma(Kind::sum(acc[p][r][v], *x[r]), scale, load(to, Full{}));
        if constexpr (Q::offset) sum = fma(load(scales + NB, Full{}), splat(x[r]->sum), sum);
        store(to, sum, Full{});
      }
    }
}

// How far ahead of its words a tile fetches them, from where a panel ends in the next but Panels.
constexpr i64 prefetch = 2048;

// c[Rows][Panels * NB] = rows of blocks times panels that follow each other.
template <class Q, class Kind, int Rows, int Panels>
GD_NOINLINE void tile(const char* const* rows, const Q* w, i64 k, i64 panel, float* c,
                      i64 c_stride) {
  using Block = typename Kind::Block;
  constexpr int words = Q::block / Q::per_word;
  const Block* x[Rows];
  for (int r = 0; r < Rows; ++r) x[r] = reinterpret_cast<const Block*>(rows[r]);
  for (int r = 0; r < Rows; ++r)
    for (int i = 0; i < Panels * NB; i += W) store(c + r * c_stride + i, splat(0), Full{});
  const i64 bytes = Q::panel_bytes(k), size = Q::group_size(k);
  const char* group = group_at(w, k, panel, 0);
  const char* end = group + bytes;
  for (i64 begin = 0; begin < Q::padded(k); begin += size) {
    const char* word = group + Q::head;
    for (i64 at = 0; at < size; at += Q::block) {
      const i64 ahead = word + prefetch < end ? prefetch : prefetch + (Panels - 1) * bytes;
      typename Kind::Acc acc[Panels][Rows][V];
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[p][r][v] = Kind::start(*x[r]);
#pragma GCC unroll 1
      for (int i = 0; i < words; ++i, word += NB * 4) {
        const char* next = word + ahead;
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p)
          for (int line = 0; line < NB * 4; line += 64)
            __builtin_prefetch(next + p * bytes + line);
        Kind::add(acc, x, i, word, bytes);
      }
      add_sums<Q, Kind>(acc, x, group, bytes, c, c_stride);
      for (int r = 0; r < Rows; ++r) ++x[r];
    }
    group += Q::group_bytes(k);
  }
}

}  // namespace quants

namespace product {

template <class T, int Bits, int Group, bool Offset, class Scale, bool IntAct>
struct Reader<T, Quant<Bits, Group, Offset, Scale, IntAct>> {
  using Q = Quant<Bits, Group, Offset, Scale, IntAct>;
  using Kind = typename quants::RowsOf<T, Q>::type;

  static i64 rows(const Team& team, const T* x, i64 stride, i64 rows, i64 k, char* scratch,
                  const char** pointers) {
    const i64 bytes = quants::row_bytes(k);
    share_rows(team, rows, k, bytes, bytes, scratch, pointers, [&](i64 r, char* to) {
      quants::prepare_row<Q>(x + r * stride, k, k, reinterpret_cast<typename Kind::Block*>(to), 1);
    });
    return 0;
  }
  static void panels(const char* const* x, i64, i64 rows, const Q* w, Range group, i64 k,
                     float* c) {
    if (rows < from_rows) {
      side_tiles(rows, group, c, [&](auto height, auto side, i64 p, float* to) {
        quants::tile<Q, Kind, height.value, side.value>(x, w, k, p, to, few_stride);
      });
      return;
    }
    for (i64 p = group.begin; p < group.end; ++p, c += NB)
      for_heights(rows, [&](auto height, i64 r) {
        quants::tile<Q, Kind, height.value, 1>(x + r, w, k, p, c + r * few_stride, few_stride);
      });
  }
  static const char* block(const Q* w, i64 k, i64 panel, i64 begin, i64 size, float* unpacked) {
    constexpr int each = dots<T> ? 2 : 1;
    quants::unpack<dots<T>>(w, k, panel, begin * each, size * each, unpacked);
    return reinterpret_cast<const char*>(unpacked);
  }
};

}  // namespace product

// Bytes of scratch that matmul needs with weights of any format.
inline i64 quant_scratch(i64 rows, i64 n, i64 k, int nw, int threads) {
  const i64 own = round_up(rows * quants::row_bytes(k), 64);
  const i64 few = rows <= product::few_rows ? threads * own : 0;
  return most(few, matmul_scratch(rows, n, k, nw, threads));
}

// As matmul with other weights.
template <int NW, class T, class Epi, int Bits, int Group, bool Offset, class Scale, bool IntAct>
void matmul(const Team& team, const T* x, i64 x_stride,
            const Quant<Bits, Group, Offset, Scale, IntAct>* const (&w)[NW], i64 rows, i64 n,
            i64 k, char* scratch, Epi epi) {
  if (rows <= product::few_rows)
    product::few<NW>(team, x, x_stride, w, rows, n, k, scratch, epi);
  else
    product::many<NW>(team, x, x_stride, w, rows, n, k, scratch, epi);
}

// out[i] = row ids[i] of a packed table [rows, dim]; zeros for an id that is none of them.
template <class T, int Bits, int Group, bool Offset, class Scale, bool IntAct>
GD_NOINLINE void embedding(const Team& team, const int32_t* ids, i64 count,
                           const Quant<Bits, Group, Offset, Scale, IntAct>* table, i64 rows,
                           i64 dim, T* out, i64 out_stride) {
  embedding_rows(team, ids, count, rows, dim, out, out_stride,
                 [&](i64 row, i64 d, T* to) { put(to, quants::value_at(table, dim, row, d)); });
}

}  // namespace gd
