// Quantised weights: their formats, how they are packed, and single values and blocks of them
// taken out again.
//
// A packed weight [n, k] is panels of NB columns, as of any weight (matmul_tile.hpp).  A panel is
// its groups along k: the scales of its columns, their offsets, and 32-bit words [..][NB] of
// numbers without a sign, q + bias.  A word of 8 bits is four numbers that follow each other along
// k.  One of 4 bits is eight: its low nibbles are the first four, its high nibbles the next four,
// so that with a mask and a shift they are bytes in order.  Columns are padded with zeros, and
// rows that are one group up to a multiple of 32.
#pragma once
#include "matmul_tile.hpp"

namespace gd {

struct f16 {
  uint16_t bits;
};
// Of finite numbers.
GD_INLINE float to_float(f16 h) {
  const float size = bits_to_float(uint32_t(h.bits & 0x7fff) << 13) * 0x1p112f;
  return h.bits & 0x8000 ? -size : size;
}
// Of numbers that are such halves.
GD_INLINE void put(f16* p, float f) {
  const uint32_t u = float_to_bits(__builtin_fabsf(f) * 0x1p-112f);
  *p = {uint16_t((float_to_bits(f) >> 31 << 15) | (u >> 13))};
}
template <class L> GD_INLINE F load(const f16* p, L l) {
#if defined(GD_AVX512)
  using Half = short __attribute__((vector_size(32)));
  return __builtin_ia32_vcvtph2ps512_mask((Half)load_raw<H>(p, l), F{}, 0xffff, 4);
#elif defined(GD_AVX2) && defined(__F16C__)
  using Half = short __attribute__((vector_size(16)));
  return __builtin_ia32_vcvtph2ps256((Half)load_raw<H>(p, l));
#else
  const U h = __builtin_convertvector(load_raw<H>(p, l), U);
  return (F)((U)((F)((h & 0x7fff) << 13) * 0x1p112f) | ((h & 0x8000) << 16));
#endif
}

// Bytes of a packed weight: numbers of `Bits` bits, a scale for every `Group` along k (0: for the
// row), and where there is an offset w = q * scale + offset.  With `IntAct` rows of x are rounded
// to int8.
template <int Bits, int Group, bool Offset, class Scale, bool IntAct> struct Quant {
  static constexpr int bits = Bits, group = Group;
  static constexpr bool offset = Offset, int_act = IntAct;
  static constexpr int per_word = 32 / Bits;
  static constexpr int bias = Bits == 8 ? 128 : Offset ? 0 : 8;
  static constexpr int block = Group == 16 ? 16 : 32;  // numbers of x that are prepared together
  static constexpr i64 head = (1 + Offset) * NB * i64(sizeof(Scale));  // scales and offsets
  using scale = Scale;

  static constexpr i64 padded(i64 k) { return Group == 0 ? round_up(k, block) : k; }
  static constexpr i64 group_size(i64 k) { return Group == 0 ? padded(k) : Group; }
  static constexpr i64 group_bytes(i64 k) { return head + group_size(k) / per_word * NB * 4; }
  static constexpr i64 panel_bytes(i64 k) { return padded(k) / group_size(k) * group_bytes(k); }

  uint8_t byte;
};

namespace quants {

// Which of the numbers of a word of 4 bits stands at nibble j, and the other way round.
constexpr int number_at(int nibble) { return nibble % 2 * 4 + nibble / 2; }
constexpr int nibble_of(int number) { return number % 4 * 2 + number / 4; }

template <class Q> GD_INLINE int shift_of(i64 number) {
  return Q::bits == 8 ? int(number) * 8 : nibble_of(int(number)) * 4;
}

// A column's group `g`, and where words begin in it.
template <class Q> GD_INLINE const char* group_at(const Q* w, i64 k, i64 panel, i64 g) {
  return reinterpret_cast<const char*>(w) + panel * Q::panel_bytes(k) + g * Q::group_bytes(k);
}
template <class Q> GD_INLINE const typename Q::scale* scales_of(const char* group) {
  return reinterpret_cast<const typename Q::scale*>(group);
}

template <class Q> GD_INLINE float value_at(const Q* w, i64 k, i64 row, i64 column) {
  const i64 size = Q::group_size(k), at = column % size, c = row % NB;
  const char* group = group_at(w, k, row / NB, column / size);
  const int32_t word = load_word(group + Q::head + (at / Q::per_word * NB + c) * 4);
  const int q = int(uint32_t(word) >> shift_of<Q>(at % Q::per_word)) & ((1 << Q::bits) - 1);
  const float value = float(q - Q::bias) * to_float(scales_of<Q>(group)[c]);
  return Q::offset ? value + to_float(scales_of<Q>(group)[NB + c]) : value;
}

// One number of every word, of a column's scale and offset.
template <class Q> GD_INLINE F value_of(I word, int number, F scale, F offset) {
  const I u = (I)((U)word >> shift_of<Q>(number)) & ((1 << Q::bits) - 1);
  const F q = to_f(u) - float(Q::bias);
  return Q::offset ? fma(q, scale, offset) : q * scale;
}

// Rows [begin, begin + count) of a panel as rows of f32, or two to a row of pairs of bf16; both
// numbers are multiples of 2, and `begin` of a block.  Whole blocks are written.
template <bool Pairs, class Q>
GD_NOINLINE void unpack(const Q* w, i64 k, i64 panel, i64 begin, i64 count, float* to) {
  const i64 size = Q::group_size(k);
  for (i64 at = begin; at < begin + count; at += Q::block) {
    const char* group = group_at(w, k, panel, at / size);
    const char* words = group + Q::head + at % size / Q::per_word * NB * 4;
    const auto* scales = scales_of<Q>(group);
    for (int v = 0; v < NB; v += W) {
      const F scale = load(scales + v, Full{});
      F offset = {};
      if constexpr (Q::offset) offset = load(scales + NB + v, Full{});
      float* column = to + (at - begin) / (Pairs ? 2 : 1) * NB + v;
      for (int i = 0; i < Q::block / Q::per_word; ++i) {
        const I word = load_raw<I>(words + (i * NB + v) * 4, Full{});
#pragma GCC unroll 4
        for (int number = 0; number < Q::per_word; number += 2) {
          const F first = value_of<Q>(word, number, scale, offset);
          const F second = value_of<Q>(word, number + 1, scale, offset);
          if constexpr (Pairs) {
            store(column, (F)(bf16_bits(first) | bf16_bits(second) << 16), Full{});
          } else {
            store(column, first, Full{});
            store(column + NB, second, Full{});
          }
          column += Pairs ? NB : 2 * NB;
        }
      }
    }
  }
}

// The word of a row's numbers from column `begin` on.
template <class Q> GD_INLINE uint32_t word_of(const int8_t* row, i64 begin, i64 k) {
  uint32_t word = 0;
  for (i64 i = 0; i < Q::per_word; ++i) {
    const int q = row != nullptr && begin + i < k ? row[begin + i] : 0;
    word |= (uint32_t(q + Q::bias) & ((1u << Q::bits) - 1)) << shift_of<Q>(i);
  }
  return word;
}

template <class Q>
GD_INLINE void pack_scales(const float* from, i64 row, i64 n, i64 groups, i64 g, char* to) {
  typename Q::scale scale;
  put(&scale, row < n ? from[row * groups + g] : 0.0f);
  __builtin_memcpy(to, &scale, sizeof scale);
}

}  // namespace quants

template <class Q> i64 quant_bytes(i64 n, i64 k) { return panels(n) * Q::panel_bytes(k); }

// Packs numbers [n][k], and scales and offsets [n][groups]; offsets may be null where there are
// none.
template <class Q>
GD_NOINLINE void pack_quant(const int8_t* values, const float* scales, const float* offsets,
                            Q* target, i64 n, i64 k) {
  constexpr i64 each = i64(sizeof(typename Q::scale));
  const i64 size = Q::group_size(k), groups = Q::padded(k) / size;
  char* to = reinterpret_cast<char*>(target);
  for (i64 panel = 0; panel < panels(n); ++panel)
    for (i64 g = 0; g < groups; ++g) {
      for (i64 c = 0; c < NB; ++c) {
        quants::pack_scales<Q>(scales, panel * NB + c, n, groups, g, to + c * each);
        if constexpr (Q::offset)
          quants::pack_scales<Q>(offsets, panel * NB + c, n, groups, g, to + (NB + c) * each);
      }
      to += Q::head;
      for (i64 at = g * size; at < (g + 1) * size; at += Q::per_word)
        for (i64 c = 0; c < NB; ++c, to += 4) {
          const i64 row = panel * NB + c;
          const uint32_t word =
              quants::word_of<Q>(row < n ? values + row * k : nullptr, at, k);
          __builtin_memcpy(to, &word, 4);
        }
    }
}

}  // namespace gd
