// Many rows of x beside weights of 4 bits, where the format asks for rows of 8 bits: whole numbers
// add up for a block and become floats once.  With AVX2, a block of 32 numbers of a row takes 20
// operations for 8 columns, in any of four units, where f32 takes 32 in two units.
#pragma once
#include "matmul.hpp"
#include "quant_rows.hpp"

namespace gd {

// Without an instruction for products of bytes, many rows are faster in f32. The emulation runs this
// path elsewhere.
#if defined(GD_VNNI) || defined(GD_MADD) || defined(GD_EMULATE_BYTES)
#define GD_MANY_BYTES 1
#endif

namespace quants {

// A block of a panel: scales, offsets, and every weight a byte.
template <class Q> struct PanelBlock {
  float scales[1 + Q::offset][NB];
  int32_t words[Q::block / 4][NB];
};

constexpr i64 block_bytes_k = 576;  // numbers of k whose panel stays in L1

// `count` blocks of a panel, from number `begin` of k.
template <class Q>
GD_NOINLINE void unpack_bytes(const Q* w, i64 k, i64 panel, i64 begin, i64 count,
                              PanelBlock<Q>* to) {
  const i64 size = Q::group_size(k);
  for (i64 at = begin; at < begin + count * Q::block; at += Q::block, ++to) {
    const char* group = group_at(w, k, panel, at / size);
    const char* words = group + Q::head + at % size / Q::per_word * NB * 4;
    const auto* scales = scales_of<Q>(group);
    for (int v = 0; v < NB; v += W) {
      for (int i = 0; i < 1 + Q::offset; ++i)
        store(to->scales[i] + v, load(scales + i * NB + v, Full{}), Full{});
      for (int i = 0; i < Q::block / 4; i += 2) {
        const U word = load_raw<U>(words + (i / 2 * NB + v) * 4, Full{});
        store(to->words[i] + v, (I)(word & 0x0f0f0f0f), Full{});
        store(to->words[i + 1] + v, (I)(word >> 4 & 0x0f0f0f0f), Full{});
      }
    }
  }
}

// c[R][NB] (+)= a strip times a panel. The sums lie in memory: registers are for those of a block.
template <class Q>
GD_NOINLINE void byte_tile(const ByteBlock<Q>* x, const PanelBlock<Q>* w, i64 blocks, float* c,
                           i64 c_stride, bool add) {
  for (int r = 0; r < R && !add; ++r)
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * W, splat(0), Full{});
  for (; blocks > 0; --blocks, x += R, ++w) {
    I acc[R][V] = {};
#pragma GCC unroll 8
    for (int i = 0; i < Q::block / 4; ++i) {
      I weight[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) weight[v] = load(w->words[i] + v * W, Full{});
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const I bytes = splat_i(load_word(x[r].x + i * 4));
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[r][v] = add_bytes(acc[r][v], weight[v], bytes);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const F scale = splat(x[r].scale), more = splat(Q::offset ? x[r].sum : x[r].start);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        float* to = c + r * c_stride + v * W;
        const F products = to_f(gathered(acc[r][v])), of_w = load(w->scales[0] + v * W, Full{});
        F sum = load(to, Full{});
        if constexpr (Q::offset)
          sum = fma(load(w->scales[1] + v * W, Full{}), more, fma(products * scale, of_w, sum));
        else
          sum = fma(fma(products, scale, more), of_w, sum);
        store(to, sum, Full{});
      }
    }
  }
}

}  // namespace quants

namespace product {

#if defined(GD_MANY_BYTES)
template <class T, int Group, bool Offset, class Scale>
struct Blocked<T, Quant<4, Group, Offset, Scale, true>> {
  using Q = Quant<4, Group, Offset, Scale, true>;
  using Block = quants::ByteBlock<Q>;
  using Panel = quants::PanelBlock<Q>;
  static constexpr i64 most_blocks = quants::block_bytes_k / Q::block;
  static_assert(R * 4 * least_k >= R * i64(sizeof(Block)) * (32 / Q::block));
  static_assert(block_k * NB * 4 >= i64(sizeof(Panel)) * most_blocks);

  static i64 blocks(i64 k) { return (k + Q::block - 1) / Q::block; }

  static void copy(const Team& team, const T* x, i64 stride, i64 rows, i64, i64 k, char* to) {
    const Range mine = team.share((rows + R - 1) / R);
    // The rows of a strip lie side by side, block by block, and those beyond the last are zeros.
    for (i64 r = mine.begin * R; r < mine.end * R; ++r)
      quants::prepare_row<Q>(x + r * stride, r < rows ? k : 0, k,
                             reinterpret_cast<Block*>(to) + r / R * R * blocks(k) + r % R, R);
  }

  static GD_NOINLINE void multiply(const char* x, i64, Range rows, const Q* w, Range group, i64 k,
                                   float* unpacked, float* c) {
    Panel* const block = reinterpret_cast<Panel*>(unpacked);
    const i64 count = blocks(k), count_panels = group.end - group.begin;
    const i64 pieces = (count + most_blocks - 1) / most_blocks, each = (count + pieces - 1) / pieces;
    for (i64 begin = 0; begin < count; begin += each) {
      const i64 size = least(each, count - begin);
      for (i64 p = 0; p < count_panels; ++p)
        quants::unpack_bytes(w, k, group.begin + p, begin * Q::block, size, block + p * size);
      const Block* const strips = reinterpret_cast<const Block*>(x) + begin * R;
      for (i64 r0 = rows.begin; r0 < rows.end; r0 += block_rows)
        for (i64 p = 0; p < count_panels; ++p)
          for (i64 r = r0; r < least(r0 + block_rows, rows.end); r += R)
            quants::byte_tile(strips + r * count, block + p * size, size,
                              c + (r - rows.begin) * block_columns + p * NB, block_columns,
                              begin > 0);
    }
  }
};
#endif

}  // namespace product
}  // namespace gd
