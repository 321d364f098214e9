// Matrices as they lie in memory: ND, or FRACTAL_NZ in which 16 columns of all rows lie together.
#pragma once
#include <algorithm>
#include <cstdint>
#include "number.hpp"

namespace emulation {

constexpr int64_t chunk_size = 16;

inline int64_t chunks(int64_t n) { return (n + chunk_size - 1) / chunk_size; }

// Column c of a row is element c % 16 of its chunk c / 16.
template <class T> struct Matrix {
  T* data;
  int64_t rows, columns, row_stride, chunk_stride;

  T* chunk(int64_t row, int64_t index) const {
    return data + row * row_stride + index * chunk_stride;
  }
  int64_t chunk_columns(int64_t index) const {
    return std::min(chunk_size, columns - index * chunk_size);
  }
};

template <class T> Matrix<T> plain(T* data, int64_t rows, int64_t columns) {
  return {data, rows, columns, columns, chunk_size};
}
template <class T> Matrix<T> fractal(T* data, int64_t rows, int64_t columns) {
  return {data, rows, columns, chunk_size, chunk_size * chunk_size * chunks(rows)};
}

template <class T> void widen_row(const Matrix<const T>& from, int64_t row, float* to) {
  for (int64_t c = 0; c < chunks(from.columns); ++c)
    widen(from.chunk(row, c), to + c * chunk_size, from.chunk_columns(c));
}
template <class T> void copy(const Matrix<const T>& from, const Matrix<T>& to) {
  for (int64_t row = 0; row < from.rows; ++row)
    for (int64_t c = 0; c < chunks(from.columns); ++c)
      std::copy_n(from.chunk(row, c), from.chunk_columns(c), to.chunk(row, c));
}

}  // namespace emulation
