// Caches of keys and values as they lie in memory.
#pragma once
#include "../math/matrix.hpp"
#include "helpers.hpp"

namespace emulation {

inline bool is_nz(const TensorDesc& desc) { return desc.format == ACL_FORMAT_FRACTAL_NZ; }

// Blocks of slots, ND [blocks, block, heads, dim] or NZ [blocks, heads * dim / 16, block, 16].
struct Paged {
  int64_t blocks, block, hidden;
  bool nz;

  int64_t slots() const { return blocks * block; }
  // One block: a row for every slot.
  template <class T> Matrix<T> at(T* cache, int64_t index) const {
    T* data = cache + index * block * hidden;
    if (!nz) return plain(data, block, hidden);
    return {data, block, hidden, chunk_size, chunk_size * block};
  }
};

inline Status read_paged(const char* name, const TensorDesc& cache, int64_t heads, int64_t head_dim,
                         Paged& paged) {
  const int64_t hidden = heads * head_dim;
  if (rank(cache) != 4) return bad_rank(name, cache, "4 dims");
  paged = {dim(cache, 0), dim(cache, is_nz(cache) ? 2 : 1), hidden, is_nz(cache)};
  if (!is_nz(cache) && !is(cache, {paged.blocks, paged.block, heads, head_dim}))
    return bad_dim(name, cache, "[blocks, block, " + to_string(heads) + ", " +
                   to_string(head_dim) + "]");
  if (is_nz(cache) &&
      (hidden % 16 != 0 || !is(cache, {paged.blocks, hidden / 16, paged.block, 16})))
    return bad_dim(name, cache, "[blocks, " + to_string(heads) + " * " + to_string(head_dim) +
                   " / 16, block, 16] for NZ");
  return atb::NO_ERROR;
}

// A layer's sequences, ND [layers, sequences, slots, hidden] or NZ [layers, sequences, hidden / 16,
// slots, 16].
struct Contiguous {
  int64_t layers, sequences, slots, hidden;
  bool nz;

  // One sequence of a layer, layer * sequences + sequence: a row for every slot.
  template <class T> Matrix<T> at(T* cache, int64_t index) const {
    T* data = cache + index * slots * hidden;
    if (!nz) return plain(data, slots, hidden);
    return {data, slots, hidden, chunk_size, chunk_size * slots};
  }
};

inline Status read_contiguous(const char* name, const TensorDesc& cache, int64_t hidden,
                              Contiguous& found) {
  const bool nz = is_nz(cache);
  if (rank(cache) != (nz ? 5 : 4)) return bad_rank(name, cache, nz ? "5 dims for NZ" : "4 dims");
  found = {dim(cache, 0), dim(cache, 1), dim(cache, nz ? 3 : 2), hidden, nz};
  if (!nz && last(cache) != hidden)
    return bad_dim(name, cache, "[layers, sequences, slots, " + to_string(hidden) + "]");
  if (nz && (hidden % 16 != 0 || dim(cache, 2) != hidden / 16 || last(cache) != 16))
    return bad_dim(name, cache, "[layers, sequences, " + to_string(hidden) +
                   " / 16, slots, 16] for NZ");
  return atb::NO_ERROR;
}

template <class T>
void widen_columns(const Matrix<const T>& cache, int64_t row, int64_t column, int64_t count,
                   float* to) {
  if (cache.chunk_stride == chunk_size) return widen(cache.chunk(row, 0) + column, to, count);
  for (int64_t done = 0; done < count;) {
    const int64_t place = column + done;
    const int64_t n = std::min(count - done, chunk_size - place % chunk_size);
    widen(cache.chunk(row, place / chunk_size) + place % chunk_size, to + done, n);
    done += n;
  }
}

// Columns [column, column + count) of a slot, in part `index` of a cache of either kind.
template <class Cache>
void widen_slot(const atb::Tensor& tensor, const Cache& cache, int64_t index, int64_t slot,
                int64_t column, int64_t count, float* to) {
  if (tensor.desc.dtype == ACL_BF16)
    return widen_columns(cache.at(static_cast<const bfloat*>(tensor.deviceData), index), slot,
                         column, count, to);
  widen_columns(cache.at(static_cast<const half*>(tensor.deviceData), index), slot, column, count,
                to);
}

// Copies a row of new keys or values into a slot.
template <class T> void write_row(const T* from, const Matrix<T>& cache, int64_t row) {
  for (int64_t c = 0; c < chunks(cache.columns); ++c)
    std::copy_n(from + c * chunk_size, cache.chunk_columns(c), cache.chunk(row, c));
}

}  // namespace emulation
