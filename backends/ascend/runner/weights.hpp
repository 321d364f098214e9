// Weights in the format that the kernels read.
#pragma once
#include <cstring>

#include "tensors.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

constexpr int64_t NZ_WIDTH = 16;

// The sizes of a weight [n, k] that lies in tiles: its desc has them so, or as [1, k / 16, n, 16].
struct Matrix {
  int64_t n, k;
};

inline Matrix MatrixOf(const TensorSpec& spec) {
  const std::vector<int64_t>& shape = spec.shape;
  if (shape.size() == 4) return {shape[2], shape[1] * NZ_WIDTH};
  return {shape[0], shape[1]};
}

// The bytes of a param that is packed; 0 for one that is read as it is.
inline int64_t PackedBytes(const TensorSpec& spec) {
  return spec.format == ACL_FORMAT_FRACTAL_NZ ? static_cast<int64_t>(BytesOf(spec)) : 0;
}

// Rows of 16 columns: [n, k] to [k / 16, n, 16], both of 16-bit numbers.
inline void PackTiles(const TensorSpec& spec, const void* source, void* target) {
  const Matrix matrix = MatrixOf(spec);
  const auto* from = static_cast<const uint16_t*>(source);
  auto* to = static_cast<uint16_t*>(target);
  for (int64_t tile = 0; tile < matrix.k / NZ_WIDTH; ++tile) {
    for (int64_t row = 0; row < matrix.n; ++row) {
      std::memcpy(to + (tile * matrix.n + row) * NZ_WIDTH, from + row * matrix.k + tile * NZ_WIDTH,
                  NZ_WIDTH * sizeof(uint16_t));
    }
  }
}

}  // namespace gdsl
