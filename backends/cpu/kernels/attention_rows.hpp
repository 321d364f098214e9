// Products of a few queries with rows of a cache as they lie in memory: every load serves all
// queries, and what is read a little later is fetched between the multiplications.
#pragma once
#include "attention_parts.hpp"

namespace gd {
namespace attending {

// How rows unpack: `parts` vectors at a time.  Of bf16 these are the even elements and the odd ones
// of a vector of pairs, which takes one shift and one mask; queries and sums that meet such rows
// are kept in that order.
template <class E> struct Unpack {
  static constexpr int parts = 1;
  template <class L> static GD_INLINE F part(const E* p, int, L lanes) { return load(p, lanes); }
};
template <> struct Unpack<bf16> {
  static constexpr int parts = 2;
  template <class L> static GD_INLINE F part(const bf16* p, int which, L lanes) {
    const I pairs = words(p, lanes);
    return which == 0 ? (F)(pairs << 16) : (F)(pairs & int32_t(0xffff0000));
  }
  static GD_INLINE I words(const bf16* p, Full) { return load_raw<I>(p, Full{}); }
  static GD_INLINE I words(const bf16* p, Tail t) {
    I pairs = {};
    __builtin_memcpy(&pairs, p, unsigned(t.n & (2 * W - 1)) * 2);
    return pairs;
  }
};
template <class E> constexpr int unit = Unpack<E>::parts * W;  // elements that unpack together
// Floats that `dim` elements take when they are unpacked.
GD_INLINE i64 unpacked_floats(i64 dim) { return round_up(dim, 2 * W > 16 ? 2 * W : 16); }
// From row to row: what is loaded together must not come from the same banks of L1, as rows would
// that lie a power of two apart.
constexpr i64 scores_stride = tile_keys + 4;
GD_INLINE i64 query_stride(i64 dim) { return unpacked_floats(dim) + 8; }

// Brings floats to the order in which rows of E unpack; `n` is whole units.
template <class E> GD_INLINE void to_unpacked([[maybe_unused]] float* x, [[maybe_unused]] i64 n) {
  if constexpr (Unpack<E>::parts == 2) {
    const I even = lane_index() * 2;
    for (i64 i = 0; i < n; i += 2 * W) {
      const F a = load(x + i, Full{}), b = load(x + i + W, Full{});
      store(x + i, __builtin_shuffle(a, b, even), Full{});
      store(x + i + W, __builtin_shuffle(a, b, even + 1), Full{});
    }
  }
}
// And back.
template <class E> GD_INLINE void to_plain([[maybe_unused]] float* x, [[maybe_unused]] i64 n) {
  if constexpr (Unpack<E>::parts == 2) {
    const I first = (lane_index() >> 1) + (lane_index() & 1) * W;
    for (i64 i = 0; i < n; i += 2 * W) {
      const F a = load(x + i, Full{}), b = load(x + i + W, Full{});
      store(x + i, __builtin_shuffle(a, b, first), Full{});
      store(x + i + W, __builtin_shuffle(a, b, first + W / 2), Full{});
    }
  }
}

// A level of the tree that sums W vectors at once: a's sums go to the lanes without bit S, b's to
// those with it.
template <int S> GD_INLINE F pair_sums(F a, F b) {
  I first, second;
  for (int l = 0; l < W; ++l) {
    first[l] = l & S ? (l ^ S) + W : l;
    second[l] = l & S ? l + W : l ^ S;
  }
  return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}
// Lane i of the result is the sum of v[i].
template <int S = W / 2> GD_INLINE F sums_of(F* v) {
#pragma GCC unroll 8
  for (int i = 0; i < S; ++i) v[i] = pair_sums<S>(v[i], v[i + S]);
  if constexpr (S > 1) return sums_of<S / 2>(v);
  return v[0];
}

template <class E> GD_INLINE i64 row_bytes(i64 dim) {
  return dim * i64(sizeof(E)) + (same<E, int8_t>::value ? 4 : 0);
}
// Where a row begins, of whatever type.
typedef const char* Address __attribute__((may_alias));
// Rows of a tile, and for each the one that is fetched meanwhile: whole rows one after the other,
// which is how memory is read fastest.  It is handed on by reference, with a row to begin at: put
// together anew for every call it would be loaded before its stores are done.
template <class E> struct Reading {
  const E* const* row;
  const Address* coming;
  i64 dim;

  GD_INLINE void fetch(i64 i) const {
    const char* at = coming[i];
    const char* const end = at + dim * i64(sizeof(E));
    for (; at < end; at += 64) __builtin_prefetch(at);
  }
};

// Keeps v in a register: what is used often is not to be loaded every time.
GD_INLINE void in_register([[maybe_unused]] F& v) {
#if defined(GD_AVX512) || defined(GD_AVX2)
  __asm__("" : "+v"(v));
#endif
}

// acc[k][r] += q[r] . row[k] for one unit of dimensions; a second part may have sums of its own.
template <int Q, int K, int Parts, class E, class L>
GD_INLINE void dot_unit(const float* q, i64 q_stride, const E* const* row, i64 d, L lanes,
                        F (&acc)[Parts][K][Q]) {
#pragma GCC unroll 2
  for (int part = 0; part < Unpack<E>::parts; ++part) {
    F x[Q];
#pragma GCC unroll 4
    for (int r = 0; r < Q; ++r) {
      x[r] = load(q + r * q_stride + d + part * W, Full{});
      if constexpr (K > 1) in_register(x[r]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const F y = Unpack<E>::part(row[k] + d, part, lanes);
#pragma GCC unroll 4
      for (int r = 0; r < Q; ++r) acc[part % Parts][k][r] = fma(x[r], y, acc[part % Parts][k][r]);
    }
  }
}

// sums[r][k] = q[r] . row[k] of K rows, not yet added up over lanes.  Where that makes few sums,
// units that follow each other have their own, so that they do not wait for each other.
template <int Q, int K, class E>
GD_INLINE void dot_rows(const float* q, i64 q_stride, const E* const* row, i64 dim,
                        F (*sums)[W]) {
  constexpr int parts = Unpack<E>::parts, Parts = Q * K > 4 ? 1 : parts;
  constexpr int Chains = Q * K > 4 ? 1 : Q * K * parts > 1 ? 2 : 4;
  F acc[Chains][Parts][K][Q] = {};
  i64 d = 0;
  for (; d + Chains * unit<E> <= dim; d += Chains * unit<E>)
#pragma GCC unroll 4
    for (int c = 0; c < Chains; ++c)
      dot_unit<Q, K>(q, q_stride, row, d + c * unit<E>, Full{}, acc[c]);
  for (; d + unit<E> <= dim; d += unit<E>) dot_unit<Q, K>(q, q_stride, row, d, Full{}, acc[0]);
  if (d < dim) dot_unit<Q, K>(q, q_stride, row, d, Tail{int(dim - d)}, acc[0]);
#pragma GCC unroll 8
  for (int i = 1; i < Chains * Parts; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < K * Q; ++j)
      acc[0][0][j / Q][j % Q] += acc[i / Parts][i % Parts][j / Q][j % Q];
#pragma GCC unroll 8
  for (int j = 0; j < K * Q; ++j) sums[j % Q][j / Q] = acc[0][0][j / Q][j % Q];
}

// scores[r][0 .. W) = q[r] . k[at .. at + W) for Q queries.
template <int Q, class E>
GD_NOINLINE void dot_vector(const float* q, i64 q_stride, const Reading<E>& k, i64 at,
                            float* scores) {
  // Where unpacking is what takes time, one query is loaded for many rows.
  constexpr int K = Q > 1 ? 2 : !same<E, int8_t>::value ? 1 : W < 8 ? W : 8;
  F sums[Q][W];
  for (int i = 0; i < W; i += K) {
    for (int j = 0; j < K; ++j) k.fetch(at + i + j);
    F some[Q][W];
    dot_rows<Q, K>(q, q_stride, k.row + at + i, k.dim, some);
#pragma GCC unroll 4
    for (int r = 0; r < Q; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) sums[r][i + j] = some[r][j];
  }
#pragma GCC unroll 4
  for (int r = 0; r < Q; ++r) store(scores + r * scores_stride, sums_of(sums[r]), Full{});
}

// sums[q][d ..] += weights[q] v[d ..] for Q queries and C vectors of dimensions.
template <int Q, int C, class E, class L>
GD_INLINE void add_values(const float* weights, const E* const* v, i64 keys, i64 d, float* sums,
                          i64 sums_stride, L lanes) {
  constexpr int parts = Unpack<E>::parts;
  F acc[Q][C];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[q][c] = load(sums + q * sums_stride + d + c * W, Full{});
  for (i64 i = 0; i < keys; ++i) {
    F weight[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) weight[q] = splat(weights[q * scores_stride + i]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const F value = Unpack<E>::part(v[i] + d + c / parts * unit<E>, c % parts, lanes);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) acc[q][c] = fma(weight[q], value, acc[q][c]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(sums + q * sums_stride + d + c * W, acc[q][c], Full{});
}
// All dimensions of a few keys from `at` on, for several queries.
template <int Q, class E>
GD_NOINLINE void add_rows(const float* weights, const Reading<E>& v, i64 at, i64 keys, float* sums,
                          i64 sums_stride) {
  const E* const* const row = v.row + at;
  constexpr int C = Q == 2 ? 4 : 8 / Q, Wide = C * W;
  i64 d = 0, fetched = 0;
  for (; d + Wide <= v.dim; d += Wide) {
    for (; fetched < keys && fetched * v.dim < keys * (d + Wide); ++fetched) v.fetch(at + fetched);
    add_values<Q, C>(weights, row, keys, d, sums, sums_stride, Full{});
  }
  for (; d + unit<E> <= v.dim; d += unit<E>)
    add_values<Q, unit<E> / W>(weights, row, keys, d, sums, sums_stride, Full{});
  if (d < v.dim)
    add_values<Q, unit<E> / W>(weights, row, keys, d, sums, sums_stride, Tail{int(v.dim - d)});
}
// The same for one query: sums are loaded and stored again, so that rows are read side by side.
template <int K, class E, class L>
GD_INLINE void add_unit(const F (&weight)[K], const E* const* v, i64 d, float* sums, L lanes) {
#pragma GCC unroll 2
  for (int part = 0; part < Unpack<E>::parts; ++part) {
    float* to = sums + d + part * W;
    F sum = load(to, Full{});
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k)
      sum = fma(weight[k], Unpack<E>::part(v[k] + d, part, lanes), sum);
    store(to, sum, Full{});
  }
}
template <int K, class E>
GD_NOINLINE void add_side(const float* weights, const Reading<E>& v, i64 at, float* sums) {
  F weight[K];
  for (int k = 0; k < K; ++k) weight[k] = splat(weights[k]);
  const E* row[K];
  for (int k = 0; k < K; ++k) row[k] = v.row[at + k];
  const i64 each = round_up((v.dim + K - 1) / K, unit<E>);
  i64 d = 0;
  for (int k = 0; k < K; ++k) {
    v.fetch(at + k);
    for (const i64 end = least(v.dim - unit<E> + 1, (k + 1) * each); d < end; d += unit<E>)
      add_unit<K>(weight, row, d, sums, Full{});
  }
  if (d < v.dim) add_unit<K>(weight, row, d, sums, Tail{int(v.dim - d)});
}
template <class E>
GD_INLINE void add_one(const float* weights, const Reading<E>& v, i64 at, i64 keys, float* sums) {
  i64 i = 0;
  for (; i + 4 <= keys; i += 4) add_side<4>(weights + i, v, at + i, sums);
  for (; i < keys; ++i) add_side<1>(weights + i, v, at + i, sums);
}

// body(first, Count<Q>) for all of `rows` queries, at most four at once.
template <class Body> GD_INLINE void for_queries(i64 rows, Body body) {
  i64 r = 0;
  for (; r + 4 <= rows; r += 4) body(r, Count<4>{});
  if (rows - r == 3) body(r, Count<3>{});
  if (rows - r == 2) body(r, Count<2>{});
  if (rows - r == 1) body(r, Count<1>{});
}

// scores[r][i] *= the scale of row i, for W rows.
template <class E>
GD_INLINE void scale_scores(const E* const* row, i64 dim, i64 rows, float* scores) {
  if (same<E, int8_t>::value) {
    const F scale = row_scales(row, dim);
    for (i64 r = 0; r < rows; ++r, scores += scores_stride)
      store(scores, load(scores, Full{}) * scale, Full{});
  }
}

// scores[r][i] = q[r] . k[i], W keys for all queries while they are in L1.
template <class E>
GD_NOINLINE void dot_keys(const float* q, i64 q_stride, i64 rows, const Reading<E>& k, i64 keys,
                          float* scores) {
  for (i64 i = 0; i < keys; i += W) {
    for_queries(rows, [&](i64 r, auto count) {
      dot_vector<decltype(count)::value>(q + r * q_stride, q_stride, k, i,
                                         scores + r * scores_stride + i);
    });
    scale_scores(k.row + i, k.dim, rows, scores + i);
  }
}

// sums[r] += weights[r] v, a few keys for all queries while they are in L1; the scales of the keys
// go into the weights.
template <class E>
GD_NOINLINE void add_keys(float* weights, i64 rows, const Reading<E>& v, i64 keys, float* sums,
                          i64 sums_stride) {
  constexpr i64 step = 16;
  for (i64 i = 0; i < keys; i += W) scale_scores(v.row + i, v.dim, rows, weights + i);
  for (i64 i = 0; i < keys; i += step)
    for_queries(rows, [&](i64 r, auto count) {
      constexpr int Q = decltype(count)::value;
      const float* const weight = weights + r * scores_stride + i;
      const i64 n = least(step, keys - i);
      float* const to = sums + r * sums_stride;
      if constexpr (Q == 1 && !same<E, int8_t>::value)
        add_one(weight, v, i, n, to);
      else
        add_rows<Q>(weight, v, i, n, to, sums_stride);
    });
}

}  // namespace attending
}  // namespace gd
