// Products of two activations.
#pragma once
#include "matmul.hpp"

namespace gd {

// out[*b, m, n] = a[*b, m, k] @ b[*b, k, n]; strides count elements, in the order (batch 0, 1, 2,
// then the two of the matrix), and may be 0 or transposed.
template <class T> struct BatchedMatmul {
  const T *a, *b;
  T* out;
  i64 batch[3], m, n, k;
  i64 a_stride[5], b_stride[5], out_stride[5];
};

namespace batched {

constexpr i64 block_k = 128, block_m = 8 * R;

GD_INLINE i64 offset(const i64 (&stride)[5], const i64 (&at)[3]) {
  return at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2];
}

// rows x columns of a strided matrix in f32, `width` floats a row, zeros beyond.
template <class T>
GD_NOINLINE void copy_block(const T* x, i64 row_stride, i64 column_stride, i64 rows, i64 columns,
                            float* to, i64 width) {
  for (i64 r = 0; r < rows; ++r, x += row_stride, to += width) {
    if (column_stride == 1)
      for_lanes(columns, [&](i64 i, auto l) { store(to + i, load(x + i, l), l); });
    else
      for (i64 i = 0; i < columns; ++i) to[i] = to_float(x[i * column_stride]);
    for (i64 i = columns; i < width; ++i) to[i] = 0;
  }
}

// c[rows][NB] = the rows from m0 and NB columns from n0 of one product.
template <class T>
GD_NOINLINE void block(const BatchedMatmul<T>& p, const T* a, const T* b, i64 m0, i64 rows, i64 n0,
                       float* c) {
  alignas(64) float a_block[block_m * block_k], b_block[block_k * NB];
  const i64 columns = least(NB, p.n - n0);
  if (p.k == 0) __builtin_memset(c, 0, sizeof(float) * block_m * NB);
  for (i64 k0 = 0; k0 < p.k; k0 += block_k) {
    const i64 size = least(block_k, p.k - k0);
    copy_block(a + m0 * p.a_stride[3] + k0 * p.a_stride[4], p.a_stride[3], p.a_stride[4], rows,
               size, a_block, block_k);
    copy_block(b + k0 * p.b_stride[3] + n0 * p.b_stride[4], p.b_stride[3], p.b_stride[4], size,
               columns, b_block, NB);
    for (i64 r = 0; r < rows; r += R) {
      const char* pointers[R];
      for (int i = 0; i < R; ++i)
        pointers[i] = reinterpret_cast<const char*>(a_block + (r + i) * block_k);
      tile_rows<F32Words>(pointers, int(least(R, rows - r)), reinterpret_cast<const char*>(b_block),
                          size, c + r * NB, NB, k0 > 0);
    }
  }
}

template <class T, class Epi>
GD_NOINLINE void store_block(const float* c, T* out, i64 row_stride, i64 column_stride, i64 rows,
                             i64 columns, Epi& epi) {
  for (i64 r = 0; r < rows; ++r, c += NB, out += row_stride)
    for_lanes(columns, [&](i64 j, auto l) {
      const F value = epi(load(c + j, Full{}));
      if (column_stride == 1) return store(out + j, value, l);
      for (int i = 0; i < lane_count(l); ++i) put(out + (j + i) * column_stride, value[i]);
    });
}

}  // namespace batched

// epi(F) -> F is applied to every vector of sums before it is rounded to T.
template <class T, class Epi>
void matmul_batched(const Team& team, const BatchedMatmul<T>& p, Epi epi) {
  using namespace batched;
  const i64 downs = (p.m + block_m - 1) / block_m, across = panels(p.n);
  const Range mine = team.share(p.batch[0] * p.batch[1] * p.batch[2] * downs * across);
  alignas(64) float c[block_m * NB];
  for (i64 i = mine.begin; i < mine.end; ++i) {
    const i64 n0 = i % across * NB, m0 = i / across % downs * block_m, b = i / across / downs;
    const i64 at[3] = {b / p.batch[2] / p.batch[1], b / p.batch[2] % p.batch[1], b % p.batch[2]};
    const i64 rows = least(block_m, p.m - m0);
    block(p, p.a + offset(p.a_stride, at), p.b + offset(p.b_stride, at), m0, rows, n0, c);
    T* out = p.out + offset(p.out_stride, at) + m0 * p.out_stride[3] + n0 * p.out_stride[4];
    store_block(c, out, p.out_stride[3], p.out_stride[4], rows, least(NB, p.n - n0), epi);
  }
}
template <class T> void matmul_batched(const Team& team, const BatchedMatmul<T>& p) {
  matmul_batched(team, p, [](F sum) { return sum; });
}

}  // namespace gd
