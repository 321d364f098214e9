// Matrix products of few rows, which are bound by reading the weights: each weight is read from
// memory once.  One or two rows take whole panels side by side; more go through a panel block by
// block, which the first cache keeps for all of them while the next block is fetched.
#pragma once
#include "matmul_tile.hpp"
#include "team.hpp"

namespace gd {
namespace product {

constexpr i64 few_rows = 32;                  // beyond them the blocked path is as fast
constexpr i64 from_rows = 3;                  // that read panels block by block
constexpr i64 longest_few = 128;              // words of a block, at most
constexpr i64 few_stride = side_panels * NB;  // of a row of sums

// The words of x that go with T's packed weights: many rows of bf16 are multiplied in f32 unless
// there is a dot product.
#if defined(GD_BF16_DOT)
template <class T> constexpr bool dots = same<T, bf16>::value;
#else
template <class T> constexpr bool dots = false;
#endif
template <class T> struct Kinds {
  using few = F32Words;
  using many = F32Words;
};
template <> struct Kinds<bf16> {
#if defined(GD_BF16_DOT)
  using few = DotWords;
  using many = DotWords;
#else
  using few = PairWords;
  using many = F32Words;
#endif
};
// 32-bit words of a row of x in scratch.
template <class T> GD_INLINE i64 x_words(i64 k) {
  return dots<T> ? words<T>(k) : round_up(k, per_word<T>);
}

// Row x[k] from `begin` as `count` words, zeros beyond k.
template <class T> GD_INLINE void copy_words(const T* x, i64 k, i64 begin, i64 count, char* to) {
  if constexpr (dots<T>) {
    const i64 have = most(0, least(2 * count, k - 2 * begin));
    __builtin_memcpy(to, x + 2 * begin, size_t(have) * 2);
    __builtin_memset(to + have * 2, 0, size_t(4 * count - 2 * have));
  } else {
    const i64 have = most(0, least(count, k - begin));
    float* f = reinterpret_cast<float*>(to);
    for_lanes(have, [&](i64 i, auto l) { store(f + i, load(x + begin + i, l), l); });
    for (i64 i = have; i < count; ++i) f[i] = 0;
  }
}

// Whether x must be copied for few rows, and whether the threads share one copy, which costs them
// two barriers.
template <class T> GD_INLINE bool copies(i64 k) {
  return same<T, bf16>::value && !(dots<T> && k % 2 == 0);
}
GD_INLINE bool shares_copy(i64 rows, i64 k, int threads) { return threads > 1 && rows * k > 16384; }

// Points `pointers` at rows of `row_bytes`, which begin `spacing` bytes apart, that make(row, to)
// writes into scratch: every thread all of them into its own, or the threads together.
template <class Make>
GD_INLINE void share_rows(const Team& team, i64 rows, i64 k, i64 row_bytes, i64 spacing,
                          char* scratch, const char** pointers, Make make) {
  const bool shared = shares_copy(rows, k, team.count);
  const Range mine = shared ? team.share(rows) : Range{0, rows};
  if (!shared) scratch += team.id * round_up(rows * row_bytes, 64);
  if (shared) team.barrier();
  for (i64 r = mine.begin; r < mine.end; ++r) make(r, scratch + r * spacing);
  if (shared) team.barrier();
  for (i64 r = 0; r < rows; ++r) pointers[r] = scratch + r * spacing;
}

// Words of a panel that L1 keeps for a number of rows, beside those of x and of the next block.
// Short ones are for several streams from memory, long ones for many multiply-adds to a word.
template <class T> GD_INLINE i64 few_block(i64 rows) {
  return same<typename Kinds<T>::few, PairWords>::value && rows > 8 ? longest_few : 64;
}
// Bytes of x beside such a block.
template <class T> GD_INLINE i64 few_block_bytes(i64 rows) {
  return few_block<T>(rows) * Kinds<T>::few::x_words * 4;
}

// Points `pointers` at the rows of x, copied where the tiles cannot read them as they are, or would
// find them too far apart: [blocks][rows][words of a block]. Returns the bytes from block to block.
template <class T>
GD_NOINLINE i64 few_pointers(const Team& team, const T* x, i64 stride, i64 rows, i64 k,
                             char* scratch, const char** pointers) {
  const i64 block = few_block_bytes<T>(rows), count = x_words<T>(k);
  const i64 row_bytes = round_up(count * 4, block);
  const bool mixed = rows >= from_rows;
  if (!mixed && !copies<T>(k)) {
    for (i64 r = 0; r < rows; ++r) pointers[r] = reinterpret_cast<const char*>(x + r * stride);
    return block;
  }
  const i64 step = mixed ? rows * block : block;
  share_rows(team, rows, k, row_bytes, mixed ? block : row_bytes, scratch, pointers,
             [&](i64 r, char* to) {
               for (i64 begin = 0; begin < count; begin += block / 4, to += step)
                 copy_words(x + r * stride, k, begin, least(block / 4, count - begin), to);
             });
  return step;
}

// body(Count<height>, first row) for tiles of at least 3 rows each, as even as they can be.
template <class Body> GD_INLINE void for_heights(i64 rows, Body body) {
  i64 row = 0;
  for (i64 left = (rows + R - 1) / R; left > 0; --left) {
    const i64 height = (rows - row + left - 1) / left;
    if (height == 6)
      body(Count<6>{}, row);
    else if (height == 5)
      body(Count<5>{}, row);
    else if (height == 4)
      body(Count<4>{}, row);
    else
      body(Count<3>{}, row);
    row += height;
  }
}

// c[rows][few_stride] = one or two rows times whole panels, at most side_panels of them: tile(count
// of rows, count of panels, first panel, c) for every part.
template <class Tile> GD_INLINE void side_tiles(i64 rows, Range group, float* c, Tile tile) {
  for (i64 p = group.begin, step = 1; p < group.end; p += step, c += step * NB) {
    const i64 left = group.end - p;
    step = rows == 1 && left >= side_panels ? side_panels : left >= 2 ? 2 : 1;
    if (step > 2)
      tile(Count<1>{}, Count<side_panels>{}, p, c);
    else if (step == 2 && rows == 1)
      tile(Count<1>{}, Count<2>{}, p, c);
    else if (step == 2)
      tile(Count<2>{}, Count<2>{}, p, c);
    else if (rows == 1)
      tile(Count<1>{}, Count<1>{}, p, c);
    else
      tile(Count<2>{}, Count<1>{}, p, c);
  }
}

// c[rows][few_stride] = 3 rows or more times whole panels, block by block of the panels.  `step`:
// bytes from block to block of a row of x.
template <class T>
GD_NOINLINE void block_panels(const char* const* x, i64 step, i64 rows, const T* w, Range group,
                              i64 k, float* c) {
  const i64 count = words<T>(k), bytes = count * NB * 4, panels = group.end - group.begin;
  const i64 tiles = (rows + R - 1) / R, block_words = few_block<T>(rows);
  const int lines = int((4 * NB * 4 / 64 + tiles - 1) / tiles);
  const char* const first = reinterpret_cast<const char*>(w) + group.begin * bytes;
  for (i64 begin = 0, at = 0; begin < count; begin += block_words, at += step) {
    const i64 size = least(block_words, count - begin), end = begin + size;
    for (i64 p = 0; p < panels; ++p) {
      const char* const block = first + p * bytes + begin * NB * 4;
      const char* ahead = p + 1 < panels ? block + bytes
                          : end < count  ? first + end * NB * 4
                                         : first + panels * bytes;
      for_heights(rows, [&](auto height, i64 r) {
        float* const sums = c + r * few_stride + p * NB;
        block_tile<height.value, typename Kinds<T>::few>(x + r, at, block, size, sums, few_stride,
                                                         begin > 0, ahead, lines);
        ahead += lines * 64 * (size / 4);
      });
    }
  }
}

// c[rows][few_stride] = the rows times a group of panels; `step` as few_pointers returns it.
template <class T>
GD_NOINLINE void few_panels(const char* const* x, i64 step, i64 rows, const T* w, Range group,
                            i64 k, float* c) {
  if (rows >= from_rows) return block_panels(x, step, rows, w, group, k, c);
  const i64 count = words<T>(k), bytes = count * NB * 4;
  side_tiles(rows, group, c, [&](auto height, auto side, i64 p, float* to) {
    tile<height.value, side.value, typename Kinds<T>::few>(
        x, reinterpret_cast<const char*>(w) + p * bytes, bytes, count, to, few_stride, false);
  });
}

}  // namespace product
}  // namespace gd
