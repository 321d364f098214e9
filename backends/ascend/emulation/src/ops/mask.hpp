// Masks of attention: added to the scores, rows counted from each sequence's first query.
#pragma once
#include "../math/attention.hpp"
#include "../math/matrix.hpp"
#include "helpers.hpp"

namespace emulation {

// What a mask has to have: rows and columns for the longest sequence.
struct MaskSize {
  int64_t sequences, heads, rows, columns;
};

// ND [rows, columns], [sequences, rows, columns] or [sequences, heads, rows, columns]; NZ
// [1 or sequences, columns / 16, rows, 16].
class Mask {
 public:
  // From bf16 values the kernel takes -3e38 times the value; f16 values are added as they are.
  static constexpr float bf16_factor = -3e38f;
  // What an f16 mask has to reach to hide a key.
  static constexpr float hidden = -10000;

  explicit Mask(const TensorDesc& desc, const void* data = nullptr)
      : desc_(desc), nz_(desc.format == ACL_FORMAT_FRACTAL_NZ), data_(data) {
    const uint64_t n = rank(desc);
    rows_ = dim(desc, n - 2);
    columns_ = nz_ && n == 4 ? dim(desc, 1) * 16 : last(desc);
  }

  Status CheckShape(const MaskSize& wanted) const {
    const uint64_t n = rank(desc_);
    if (nz_ && (n != 4 || last(desc_) != 16))
      return Bad("[1 or sequences, columns / 16, rows, 16] for NZ");
    if (!nz_ && (n < 2 || n > 4))
      return Bad("[rows, columns], [sequences, rows, columns] or "
                 "[sequences, heads, rows, columns]");
    if (n > 2 && dim(desc_, 0) != wanted.sequences && !(nz_ && dim(desc_, 0) == 1))
      return Bad(to_string(wanted.sequences) + " sequences");
    if (!nz_ && n == 4 && dim(desc_, 1) != wanted.heads)
      return Bad(to_string(wanted.heads) + " heads");
    if (rows_ >= wanted.rows && columns_ >= wanted.columns) return atb::NO_ERROR;
    return Bad("at least " + to_string(wanted.rows) + " rows and " + to_string(wanted.columns) +
               " columns, for the longest sequence");
  }

  // ATB's compressed causal mask.
  Status CheckCompressedShape() const {
    if (nz_ ? is(desc_, {1, 8, 128, 16}) : is(desc_, {128, 128}) && !is_310p())
      return atb::NO_ERROR;
    return Bad(is_310p() ? "NZ [1, 8, 128, 16] for MASK_TYPE_NORM_COMPRESS on the 310P"
                         : "[128, 128], or NZ [1, 8, 128, 16], for MASK_TYPE_NORM_COMPRESS");
  }

  // Zeros up to the diagonal and hidden keys above it.
  Status CheckTriangle() const {
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t column = 0; column < columns_; ++column) {
        const float value = At(0, 0, row, column);
        if (column > row ? Hides(value) : value == 0) continue;
        return Wrong(0, row, column, value, column > row ? HiddenValue() : "0");
      }
    return atb::NO_ERROR;
  }

  // The values that one sequence uses. `triangle`: nothing above the diagonal may be seen.
  Status CheckValues(int64_t sequence, const Span& span, int64_t heads, bool triangle) const {
    for (int64_t head = 0; head < (PerHead() ? heads : 1); ++head)
      for (int64_t row = 0; row < span.queries; ++row)
        for (int64_t column = 0; column < span.keys; ++column) {
          const float value = At(sequence, head, row, column);
          if (desc_.dtype == ACL_BF16 && value < 0)
            return Wrong(sequence, row, column, value, "0 or 1, as bf16 masks are times -3e38");
          if (triangle && column > row && !Hides(value))
            return Wrong(sequence, row, column, value, HiddenValue() +
                         ", as isTriuMask skips what is above the diagonal");
        }
    return atb::NO_ERROR;
  }

  void Add(int64_t sequence, int64_t head, int64_t row, int64_t keys, float* scores) const {
    for (int64_t column = 0; column < keys; ++column) {
      const float value = At(sequence, head, row, column);
      scores[column] += desc_.dtype == ACL_BF16 ? bf16_factor * value : value;
    }
  }

 private:
  bool PerHead() const { return !nz_ && rank(desc_) == 4; }
  bool Hides(float value) const {
    return desc_.dtype == ACL_BF16 ? value >= 1 : value <= hidden;
  }
  std::string HiddenValue() const { return desc_.dtype == ACL_BF16 ? "1" : "-10000 or less"; }
  Status Bad(const std::string& wanted) const { return bad_dim("mask", desc_, wanted); }

  static Status Wrong(int64_t sequence, int64_t row, int64_t column, float value,
                      const std::string& wanted) {
    return bad_param("mask has " + to_string(value) + " for sequence " + to_string(sequence) +
                     " at row " + to_string(row) + ", column " + to_string(column) + ", wanted " +
                     wanted);
  }

  float At(int64_t sequence, int64_t head, int64_t row, int64_t column) const {
    int64_t place = 0;
    if (nz_) place = dim(desc_, 0) == 1 ? 0 : sequence;
    else if (rank(desc_) > 2) place = PerHead() ? sequence * dim(desc_, 1) + head : sequence;
    place *= rows_ * columns_;
    place += nz_ ? (column / 16 * rows_ + row) * 16 + column % 16 : row * columns_ + column;
    if (desc_.dtype == ACL_BF16) return get(static_cast<const bfloat*>(data_)[place]);
    return get(static_cast<const half*>(data_)[place]);
  }

  TensorDesc desc_;
  bool nz_;
  const void* data_;
  int64_t rows_ = 0, columns_ = 0;
};

}  // namespace emulation
