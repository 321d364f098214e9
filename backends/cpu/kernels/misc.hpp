// Selection and copying: argmax, topk, strided copies, row gathers.
#pragma once
#include "simd.hpp"
#include "team.hpp"

namespace gd {

// Index of the first of the largest values of each row x[rows, n]; a NaN counts as larger than
// every number.
template <class T>
GD_NOINLINE void argmax(const Team& team, const T* x, i64 rows, i64 n, i64 stride, int32_t* out) {
  const Range mine = team.share(rows);
  for (i64 r = mine.begin; r < mine.end; ++r) {
    const T* row = x + r * stride;
    F best = splat(-__builtin_inff());
    for_lanes(n, [&](i64 i, auto l) {
      best = v_max(best, keep(load(row + i, l), l, -__builtin_inff()));
    });
    const float top = max_of(best);
    i64 at = 0;
    while (at + 1 < n &&
           !(top != top ? to_float(row[at]) != to_float(row[at]) : to_float(row[at]) == top))
      ++at;
    out[r] = int32_t(at);
  }
}

namespace selection {

// NaN first, then larger values, then lower indices.
GD_INLINE bool before(float a, int32_t a_index, float b, int32_t b_index) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a != b) return a > b;
  return a_index < b_index;
}

// A heap of entries whose root comes last in that order.
template <class T> struct Heap {
  T* values;
  int32_t* indices;

  bool before_at(i64 i, i64 j) const {
    return before(to_float(values[i]), indices[i], to_float(values[j]), indices[j]);
  }
  void set(i64 i, T value, int32_t index) const {
    values[i] = value;
    indices[i] = index;
  }
  void swap(i64 i, i64 j) const {
    const T value = values[i];
    const int32_t index = indices[i];
    set(i, values[j], indices[j]);
    set(j, value, index);
  }
  void sink(i64 n, i64 i) const {
    for (i64 child = 2 * i + 1; child < n; child = 2 * i + 1) {
      if (child + 1 < n && before_at(child, child + 1)) ++child;
      if (!before_at(i, child)) return;
      swap(i, child);
      i = child;
    }
  }
};

// Keeps the best k so far in the heap, whose root is the worst of them; sorts it at the end.
template <class T> GD_NOINLINE void best_of_row(const T* row, i64 n, i64 k, Heap<T> heap) {
  for (i64 i = 0; i < k; ++i) heap.set(i, row[i], int32_t(i));
  for (i64 i = k / 2 - 1; i >= 0; --i) heap.sink(k, i);
  for (i64 i = k; i < n; ++i) {
    if (!before(to_float(row[i]), int32_t(i), to_float(heap.values[0]), heap.indices[0])) continue;
    heap.set(0, row[i], int32_t(i));
    heap.sink(k, 0);
  }
  for (i64 end = k - 1; end > 0; --end) {
    heap.swap(0, end);
    heap.sink(end, 0);
  }
}

}  // namespace selection

// The k largest values of each row x[rows, n] in descending order, ties by lower index; 1 <= k <=
// n.  values and indices are [rows, k].
template <class T>
GD_NOINLINE void topk(const Team& team, const T* x, i64 rows, i64 n, i64 stride, i64 k, T* values,
                      int32_t* indices) {
  const Range mine = team.share(rows);
  for (i64 r = mine.begin; r < mine.end; ++r)
    selection::best_of_row(x + r * stride, n, k,
                           selection::Heap<T>{values + r * k, indices + r * k});
}

constexpr int max_rank = 6;

// sizes[rank] elements from one strided tensor to another; both strides count elements, 0 repeats.
template <class E> struct StridedCopy {
  const E* from;
  E* to;
  int rank;
  i64 sizes[max_rank], from_stride[max_rank], to_stride[max_rank];
};
template <class E> GD_NOINLINE void copy_strided(const Team& team, const StridedCopy<E>& c) {
  const int inner = c.rank - 1;
  const i64 n = c.rank > 0 ? c.sizes[inner] : 1;
  const i64 from_step = c.rank > 0 ? c.from_stride[inner] : 1,
            to_step = c.rank > 0 ? c.to_stride[inner] : 1;
  i64 rows = 1;
  for (int d = 0; d < inner; ++d) rows *= c.sizes[d];
  const Range mine = team.share(rows);
  for (i64 row = mine.begin; row < mine.end; ++row) {
    const E* from = c.from;
    E* to = c.to;
    i64 rest = row;
    for (int d = inner - 1; d >= 0; --d) {
      from += rest % c.sizes[d] * c.from_stride[d];
      to += rest % c.sizes[d] * c.to_stride[d];
      rest /= c.sizes[d];
    }
    if (from_step == 1 && to_step == 1)
      __builtin_memmove(to, from, size_t(n) * sizeof(E));
    else
      for (i64 i = 0; i < n; ++i) to[i * to_step] = from[i * from_step];
  }
}

// out[i] = x[ids[i]] for x of `rows` rows of `width` elements; an id that is none of them gives
// zeros.
template <class E>
GD_NOINLINE void gather_rows(const Team& team, const E* x, i64 x_stride, i64 rows,
                             const int32_t* ids, i64 count, i64 width, E* out, i64 out_stride) {
  const Range mine = team.share(count);
  for (i64 i = mine.begin; i < mine.end; ++i) {
    E* to = out + i * out_stride;
    if (ids[i] < 0 || ids[i] >= rows)
      __builtin_memset(static_cast<void*>(to), 0, size_t(width) * sizeof(E));
    else
      __builtin_memcpy(static_cast<void*>(to), x + ids[i] * x_stride, size_t(width) * sizeof(E));
  }
}

}  // namespace gd
