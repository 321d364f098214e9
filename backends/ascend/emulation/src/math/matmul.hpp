// x times a weight, in floats. A few rows of x read the weight as it lies, as fast as memory gives
// it; many rows share panels of 16 of its columns, widened once.
#pragma once
#include <cstdint>
#include <memory>
#include "matrix.hpp"
#include "number.hpp"

namespace emulation {

template <class T> struct MatmulArgs {
  const float* x;  // [rows, depth]
  Matrix<const T> weight;  // [columns, depth] where transposed, else [depth, columns]
  bool transposed;
  int64_t rows, columns, depth;
};

constexpr int64_t few_rows = 16;
constexpr int tile_rows = 6;
constexpr int64_t panel_depth = 1024;

// R rows of x with C rows of the weight. Columns beyond the last one read the last one again.
template <int R, int C, class T>
void dots(const MatmulArgs<T>& a, int64_t column, float (&sums)[R][C]) {
  v8 acc[R][C] = {}, x, w;
  int64_t row[C];
  for (int c = 0; c < C; ++c) row[c] = std::min(column + c, a.columns - 1);
  const int64_t whole = a.depth / chunk_size;
  for (int64_t k = 0; k < whole; ++k)
#pragma GCC unroll 2
    for (int part = 0; part < 16; part += 8)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        load8(a.weight.chunk(row[c], k) + part, w);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          load8(a.x + r * a.depth + k * chunk_size + part, x);
          acc[r][c] += x * w;
        }
      }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      sums[r][c] = sum8(acc[r][c]);
      for (int64_t k = whole * chunk_size; k < a.depth; ++k)
        sums[r][c] += a.x[r * a.depth + k] * get(a.weight.chunk(row[c], whole)[k % chunk_size]);
    }
}

// Rows [first, first + R) of x.
template <int R, class T, class Finish>
void matmul_few(const MatmulArgs<T>& all, int64_t first, Finish finish) {
  MatmulArgs<T> a = all;
  a.x += first * a.depth;
  constexpr int C = R <= 2 ? 4 : 2;
#pragma omp parallel for if (a.columns * a.depth > 250000)
  for (int64_t column = 0; column < a.columns; column += C) {
    float sums[R][C];
    dots(a, column, sums);
    for (int r = 0; r < R; ++r)
      finish(first + r, column, sums[r], std::min<int64_t>(C, a.columns - column));
  }
}

// Columns [16 index, 16 index + 16) of depth [from, to) as panel[depth][16]; zeros beyond the end.
template <class T>
void fill_panel(const MatmulArgs<T>& a, int64_t index, int64_t from, int64_t to, float* panel) {
  const int64_t first = index * chunk_size, count = std::min(chunk_size, a.columns - first);
  if (count < chunk_size) std::fill_n(panel, (to - from) * chunk_size, 0.f);
  if (!a.transposed) {
    for (int64_t k = from; k < to; ++k)
      widen(a.weight.chunk(k, index), panel + (k - from) * chunk_size, count);
    return;
  }
  for (int64_t c = 0; c < count; ++c)
    for (int64_t k = from; k < to; k += chunk_size) {
      float wide[chunk_size];
      const int64_t n = std::min(chunk_size, to - k);
      widen(a.weight.chunk(first + c, k / chunk_size), wide, n);
      for (int64_t i = 0; i < n; ++i) panel[(k - from + i) * chunk_size + c] = wide[i];
    }
}

// sums[R][16] += x[R, depth] panel[depth, 16]
template <int R>
void tile(const float* x, int64_t stride, const float* panel, int64_t depth, float* sums) {
  v8 acc[R][2], low, high;
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    load8(sums + r * chunk_size, acc[r][0]);
    load8(sums + r * chunk_size + 8, acc[r][1]);
  }
  for (int64_t k = 0; k < depth; ++k) {
    load8(panel + k * chunk_size, low);
    load8(panel + k * chunk_size + 8, high);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      acc[r][0] += x[r * stride + k] * low;
      acc[r][1] += x[r * stride + k] * high;
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    store8(sums + r * chunk_size, acc[r][0]);
    store8(sums + r * chunk_size + 8, acc[r][1]);
  }
}

inline void tiles(const float* x, int64_t stride, int64_t rows, const float* panel, int64_t depth,
                  float* sums) {
  int64_t row = 0;
  for (; row + tile_rows <= rows; row += tile_rows)
    tile<tile_rows>(x + row * stride, stride, panel, depth, sums + row * chunk_size);
  for (; row + 2 <= rows; row += 2)
    tile<2>(x + row * stride, stride, panel, depth, sums + row * chunk_size);
  if (row < rows) tile<1>(x + row * stride, stride, panel, depth, sums + row * chunk_size);
}

template <class T, class Finish> void matmul_many(const MatmulArgs<T>& a, Finish finish) {
#pragma omp parallel if (a.rows * a.columns * a.depth > 1000000)
  {
    const auto count = size_t(a.rows * chunk_size);
    const std::unique_ptr<float[]> panel(new float[size_t(panel_depth * chunk_size)]);
    const std::unique_ptr<float[]> sums(new float[count]);
#pragma omp for
    for (int64_t index = 0; index < chunks(a.columns); ++index) {
      std::fill_n(sums.get(), count, 0.f);
      for (int64_t from = 0; from < a.depth; from += panel_depth) {
        const int64_t to = std::min(from + panel_depth, a.depth);
        fill_panel(a, index, from, to, panel.get());
        tiles(a.x + from, a.depth, a.rows, panel.get(), to - from, sums.get());
      }
      const int64_t first = index * chunk_size;
      for (int64_t row = 0; row < a.rows; ++row)
        finish(row, first, sums.get() + row * chunk_size,
               std::min(chunk_size, a.columns - first));
    }
  }
}

// finish(row, column, float* sums, count) gets every part of the result once, from any thread.
template <class T, class Finish> void matmul(const MatmulArgs<T>& a, Finish finish) {
  if (!a.transposed || a.rows > few_rows) return matmul_many(a, finish);
  int64_t first = 0;
  for (; first + 4 <= a.rows; first += 4) matmul_few<4>(a, first, finish);
  if (a.rows - first == 3) return matmul_few<3>(a, first, finish);
  if (a.rows - first == 2) return matmul_few<2>(a, first, finish);
  if (a.rows - first == 1) matmul_few<1>(a, first, finish);
}

}  // namespace emulation
