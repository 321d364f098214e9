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
};

}  // namespace gd
