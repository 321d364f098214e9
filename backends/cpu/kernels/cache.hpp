// A KV cache as it lies in memory: whoever reads or writes rows of one finds them through this.
#pragma once
#include "simd.hpp"
#include "team.hpp"

namespace gd {

// Rows of heads in slots of sequences.  E is the dtype of the rows, or int8_t: then a row is its
// numbers followed by the float they are multiplied with.
//
// Contiguous: slot s of sequence b is at b * stride[0] + s * stride[1].  Paged (block > 0): the
// block table has the number of the block of slots [i * block, (i + 1) * block) at
// table[b * table_stride + i], and stride[0] is that of blocks, stride[1] that of the slots in one.
// Shifting: of a sequence of n slots the last is the last of the memory.  Strides count elements.
template <class E> struct Cache {
  E* p;
  i64 stride[3];  // sequence or block, slot, head
  i64 slots;      // that a sequence may have
  const int32_t* table;
  i64 table_stride, block;
  bool shifts;

  // Where slot 0 of a sequence of `length` slots lies; below 0 where its first ones are gone.
  GD_INLINE i64 origin(i64 length) const { return shifts ? slots - length : 0; }
  GD_INLINE E* row(i64 b, i64 slot, i64 head, i64 origin) const {
    if (block > 0) {
      const i64 page = slot / block;
      b = table[b * table_stride + page];
      slot -= page * block;
    }
    return p + b * stride[0] + (origin + slot) * stride[1] + head * stride[2];
  }
  // Where rows [slot, slot + n) of a head begin, with one look at the table for a block.  A page
  // without a block is one that nobody sees: any other does for it.
  GD_NOINLINE void rows(i64 b, i64 slot, i64 n, i64 head, i64 origin, E** to) const {
    E* const heads = p + head * stride[2];
    if (block == 0) {
      fill(heads + b * stride[0] + (origin + slot) * stride[1], n, to);
      return;
    }
    const int32_t* page = table + b * table_stride + slot / block;
    for (i64 in = slot % block; n > 0; in = 0, ++page) {
      const i64 run = least(n, block - in);
      fill(heads + most(0, *page) * stride[0] + in * stride[1], run, to);
      to += run, n -= run;
    }
  }

 private:
  GD_INLINE void fill(E* row, i64 n, E** to) const {
    for (i64 i = 0; i < n; ++i, row += stride[1]) to[i] = row;
  }
};

// What the `dim` numbers of a row are multiplied with.
template <class E> GD_INLINE float row_scale(const E*, i64) { return 1; }
GD_INLINE float row_scale(const int8_t* row, i64 dim) {
  float scale;
  __builtin_memcpy(&scale, row + dim, sizeof(scale));
  return scale;
}
// The same of W rows.
template <class E> GD_INLINE F row_scales(const E* const* row, i64 dim) {
  F scale;
  for (int l = 0; l < W; ++l) scale[l] = row_scale(row[l], dim);
  return scale;
}
// x times the scale of its row, which only rows of int8 have.
template <class E> GD_INLINE F scaled(F x, F scale) {
  return same<E, int8_t>::value ? x * scale : x;
}

}  // namespace gd
