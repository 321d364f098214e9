// Attention of few queries: every thread reads one stretch of the cache, all heads of a group at
// once, and partial results of a stretch that was cut are merged at the end.
#pragma once
#include "attention_parts.hpp"

namespace gd {
namespace attending {

constexpr i64 few_queries = 16;  // tokens times heads of a group
constexpr i64 fetched_ahead = 16;  // rows of the cache
constexpr i64 shared_keys = 16;  // of a tile that all heads read: few enough to stay in L1

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
template <int S> GD_INLINE void sum_level(F (&v)[W]) {
#pragma GCC unroll 8
  for (int i = 0; i < S; ++i) v[i] = pair_sums<S>(v[i], v[i + S]);
  if constexpr (S > 1) sum_level<S / 2>(v);
}
// Lane i of the result is the sum of v[i].
GD_INLINE F sums_of(F (&v)[W]) {
  sum_level<W / 2>(v);
  return v[0];
}

template <class E> GD_INLINE void fetch_row(const E* row, i64 dim) {
  for (i64 d = 0; d < dim; d += 64 / i64(sizeof(E))) __builtin_prefetch(row + d);
}
// `n` rows that are read one after the other, and `then` those that are read next: wherever they
// lie, no tile begins by waiting for its first rows.
template <class E, class Then> struct Coming {
  const TileRows<E>& rows;
  i64 n, dim;
  const TileRows<Then>& then;
  i64 then_n, then_dim;

  // Fetches the rows that are read a little later than rows [at, at + count).
  GD_INLINE void fetch(i64 at, i64 count) const {
    const i64 begin = at + fetched_ahead, end = begin + count;
    for (i64 i = begin; i < least(end, n); ++i) fetch_row(rows.row[i], dim);
    for (i64 i = most(begin, n); i < least(end, n + then_n); ++i)
      fetch_row(then.row[i - n], then_dim);
  }
};
template <class E, class Then>
GD_INLINE Coming<E, Then> coming(const TileRows<E>& rows, i64 n, i64 dim,
                                 const TileRows<Then>& then, i64 then_n, i64 then_dim) {
  return {rows, n, dim, then, then_n, then_dim};
}

// W scores of one query.
template <class E> GD_INLINE F dot_row(const float* q, const E* const* row, i64 dim) {
  F acc[W] = {};
  for_lanes(dim, [&](i64 d, auto lanes) {
    const F x = load(q + d, lanes);
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) acc[l] = fma(x, load(row[l] + d, lanes), acc[l]);
  });
  return sums_of(acc);
}
template <class E>
GD_NOINLINE void dot_rows(const float* q, i64 q_stride, i64 rows, const E* const* row, i64 dim,
                          float* scores) {
  for (i64 r = 0; r < rows; ++r)
    store(scores + r * tile_keys, dot_row(q + r * q_stride, row, dim), Full{});
}

// scores[r][i] *= the scale of row i, for W rows.
template <class E>
GD_INLINE void scale_scores(const E* const* row, i64 dim, i64 rows, float* scores) {
  if (same<E, int8_t>::value) {
    const F scale = row_scales(row, dim);
    for (i64 r = 0; r < rows; ++r, scores += tile_keys)
      store(scores, load(scores, Full{}) * scale, Full{});
  }
}

// scores[r][i] = q[r] . k[i], W keys for all queries while they are in L1.  `unpacked` has room for
// W keys in f32.
template <class E, class Then>
GD_NOINLINE void dot_keys(const float* q, i64 q_stride, i64 rows, const Coming<E, Then>& k,
                          float* unpacked, float* scores) {
  const i64 dim = k.dim;
  for (i64 i = 0; i < k.n; i += W) {
    const E* const* row = k.rows.row + i;
    k.fetch(i, W);
    if (same<E, float>::value || rows == 1) {
      dot_rows(q, q_stride, rows, row, dim, scores + i);
    } else {
      const float* row_unpacked[W];
      for (int l = 0; l < W; ++l) {
        scale_row(row[l], 1, dim, unpacked + l * q_stride);
        row_unpacked[l] = unpacked + l * q_stride;
      }
      dot_rows(q, q_stride, rows, row_unpacked, dim, scores + i);
    }
    scale_scores(row, dim, rows, scores + i);
  }
}

// sums[q][d ..] += weights[q] v[d ..] for Q queries and C vectors of dimensions.
template <int Q, int C, class E, class L>
GD_INLINE void add_values(const float* weights, const E* const* v, i64 keys, i64 d, float* sums,
                          i64 sums_stride, L lanes) {
  F acc[Q][C];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[q][c] = load(sums + q * sums_stride + d + c * W, Full{});
  for (i64 i = 0; i < keys; ++i)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const F value = load(v[i] + d + c * W, lanes);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q)
        acc[q][c] = fma(splat(weights[q * tile_keys + i]), value, acc[q][c]);
    }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(sums + q * sums_stride + d + c * W, acc[q][c], Full{});
}
template <int Q, class E>
GD_NOINLINE void add_all_values(const float* weights, const E* const* v, i64 keys, i64 dim,
                                float* sums, i64 sums_stride) {
  constexpr int C = 8 / Q;
  i64 d = 0;
  for (; d + C * W <= dim; d += C * W)
    add_values<Q, C>(weights, v, keys, d, sums, sums_stride, Full{});
  for (; d + W <= dim; d += W) add_values<Q, 1>(weights, v, keys, d, sums, sums_stride, Full{});
  if (d < dim)
    add_values<Q, 1>(weights, v, keys, d, sums, sums_stride, Tail{int(dim - d)});
}
// A few keys for all queries while they are in L1; their scales go into the weights.
template <class E, class Then>
GD_NOINLINE void add_tile(float* weights, i64 rows, const Coming<E, Then>& v, float* sums,
                          i64 sums_stride) {
  constexpr i64 step = 8;
  const i64 dim = v.dim;
  for (i64 i = 0; i < v.n; i += step) {
    const i64 n = least(step, v.n - i);
    const E* const* from = v.rows.row + i;
    v.fetch(i, step);
    for (i64 j = i; j < i + n; j += W)
      if (j % W == 0) scale_scores(v.rows.row + j, dim, rows, weights + j);
    i64 r = 0;
    for (; r + 4 <= rows; r += 4)
      add_all_values<4>(weights + r * tile_keys + i, from, n, dim, sums + r * sums_stride,
                        sums_stride);
    for (; r + 2 <= rows; r += 2)
      add_all_values<2>(weights + r * tile_keys + i, from, n, dim, sums + r * sums_stride,
                        sums_stride);
    if (r < rows)
      add_all_values<1>(weights + r * tile_keys + i, from, n, dim, sums + r * sums_stride,
                        sums_stride);
  }
}

// Where a thread keeps what it is working on, and the two stretches that it may share with others.
// There are `rows` queries for each of the `together` heads of the cache that are read at once.
struct FewScratch {
  i64 q_stride, sums_stride, rows, together;
  float *q, *scores, *unpacked, *work, *shared;

  static i64 floats(i64 rows, i64 together, i64 dim, i64 value_dim) {
    const i64 q = round_up(dim, 16), v = round_up(value_dim, 16), all = rows * together;
    return round_up(all * q + rows * tile_keys + W * q + 3 * all * (v + 16), 16);
  }
  FewScratch(char* base, int thread, i64 rows_, i64 together_, i64 dim, i64 value_dim)
      : q_stride(round_up(dim, 16)),
        sums_stride(round_up(value_dim, 16) + 16),
        rows(rows_),
        together(together_) {
    q = reinterpret_cast<float*>(base) + thread * floats(rows, together, dim, value_dim);
    scores = q + rows * together * q_stride;
    unpacked = scores + rows * tile_keys;
    work = unpacked + W * q_stride;
    shared = work + rows * together * sums_stride;
  }
  // A row of sums: the running softmax in its first 16 floats, then the values.
  float* partial(int which) const {
    return which < 0 ? work : shared + which * rows * together * sums_stride;
  }
};
GD_INLINE Running get_running(const float* row) { return {row[0], row[1]}; }
GD_INLINE void set_running(float* row, Running run) {
  row[0] = run.top;
  row[1] = run.total;
}

// One tile of keys, [key, key + keys), for head `i` of those that are read together, the first of
// which is `first`; then rows [next_key, .. + then) of head `next_i` are read.
struct Tile {
  i64 first, i, key, keys, next_i, next_key, then;
};
template <class A>
GD_NOINLINE void few_tile(const A& a, const Sequence& of, const Tile& tile, const float* q,
                          const FewScratch& s, float* sums) {
  const i64 group = a.heads / a.kv_heads, g = tile.first + tile.i, key = tile.key;
  const i64 keys = tile.keys;
  const TileRows k(a.k, of, g, key, keys), v(a.v, of, g, key, keys);
  const TileRows next(a.k, of, tile.first + tile.next_i, tile.next_key, tile.then);
  dot_keys(q, s.q_stride, s.rows, coming(k, keys, a.dim, v, keys, a.value_dim), s.unpacked,
           s.scores);
  for (i64 r = 0; r < s.rows; ++r) {
    const i64 t = r / group;
    float* row = sums + r * s.sums_stride;
    Range see = seen(a, of, t);
    see.end = least(see.end, key + keys);
    Running run = get_running(row);
    const float shrink = soften(a, of, g * group + r % group, t, s.scores + r * tile_keys, key,
                                round_up(keys, W), see, run);
    set_running(row, run);
    shrink_row(row + 16, s.sums_stride - 16, shrink);
  }
  add_tile(s.scores, s.rows, coming(v, keys, a.value_dim, next, tile.then, a.dim), sums + 16,
           s.sums_stride);
}

template <class A>
GD_NOINLINE void few_begin(const A& a, i64 b, i64 first, const FewScratch& s, float* sums) {
  const i64 group = a.heads / a.kv_heads;
  for (i64 r = 0; r < s.rows * s.together; ++r) {
    const i64 t = r % s.rows / group, h = (first + r / s.rows) * group + r % s.rows % group;
    scale_row(a.q + b * a.q_stride[0] + t * a.q_stride[1] + h * a.q_stride[2], a.scale, a.dim,
              s.q + r * s.q_stride);
    __builtin_memset(sums + r * s.sums_stride, 0, size_t(s.sums_stride) * 4);
    set_running(sums + r * s.sums_stride, {nothing, 0});
  }
}
// The heads from `first` on, tile by tile: where their rows of a slot lie side by side, all of a
// tile are read before the next one.
template <class A>
GD_NOINLINE void few_stretch(const A& a, const Sequence& of, i64 first, Range keys,
                             const FewScratch& s, float* sums) {
  few_begin(a, of.b, first, s, sums);
  const i64 step = s.together > 1 ? shared_keys : tile_keys;
  for (i64 key = keys.begin; key < keys.end; key += step) {
    const i64 n = least(step, keys.end - key), after = key + n;
    for (i64 i = 0; i < s.together; ++i) {
      const bool last = i + 1 == s.together;
      const Tile tile = {first, i, key, n, last ? 0 : i + 1, last ? after : key,
                         least(fetched_ahead, last ? keys.end - after : n)};
      few_tile(a, of, tile, s.q + i * s.rows * s.q_stride, s, sums + i * s.rows * s.sums_stride);
    }
  }
}

template <class A>
GD_NOINLINE void few_finish(const A& a, i64 b, i64 first, const FewScratch& s, float* sums) {
  const i64 group = a.heads / a.kv_heads;
  for (i64 r = 0; r < s.rows * s.together; ++r) {
    float* row = sums + r * s.sums_stride;
    const i64 h = (first + r / s.rows) * group + r % s.rows % group;
    finish_row(a, b, r % s.rows / group, h, row + 16, row[1]);
  }
}

// to += from, both partial softmaxes over different keys.
GD_NOINLINE inline void few_merge(float* to, const float* from, i64 rows, i64 stride) {
  for (i64 r = 0; r < rows; ++r, to += stride, from += stride) {
    const Running x = get_running(to), y = get_running(from);
    const float top = __builtin_fmaxf(x.top, y.top);
    if (top == nothing) continue;
    const F shrink = v_exp(splat(x.top - top)), shrink_from = v_exp(splat(y.top - top));
    set_running(to, {top, x.total * shrink[0] + y.total * shrink_from[0]});
    for (i64 i = 16; i < stride; i += W)
      store(to + i, load(to + i, Full{}) * shrink + load(from + i, Full{}) * shrink_from, Full{});
  }
}

// The keys of heads that are read together, from head `first` on: their slots, and where they lie
// among the keys of all such heads one after the other.
struct Group {
  Sequence s;
  i64 first;
  Range slots, keys;
  bool empty() const { return keys.begin == keys.end; }
  bool inside(Range share) const { return share.begin <= keys.begin && keys.end <= share.end; }
};
// The heads of the cache whose rows of a slot lie side by side, and which are best read together.
template <class A> GD_INLINE i64 heads_together(const A& a) {
  return a.k.block > 0 || a.k.stride[2] < a.k.stride[1] ? a.kv_heads : 1;
}
template <class A> inline i64 groups(const A& a) {
  return a.batch * a.kv_heads / heads_together(a);
}
template <class A> inline Group group_after(const A& a, i64 i, i64 start) {
  const i64 head = i * heads_together(a);
  const Sequence s = sequence(a, head / a.kv_heads);
  const Range slots = seen_by_any(a, s, 0, a.tokens);
  return {s, head % a.kv_heads, slots, {start, start + slots.end - slots.begin}};
}
template <class A> inline i64 all_keys(const A& a) {
  i64 total = 0;
  for (i64 i = 0; i < groups(a); ++i) total = group_after(a, i, total).keys.end;
  return total;
}
GD_INLINE Range few_share(i64 total, int thread, int threads) {
  const auto cut = [&](int t) { return t == threads ? total : total * t / threads / 16 * 16; };
  return {cut(thread), cut(thread + 1)};
}

// This thread's keys: a group that lies inside its share is finished, of others the sums are left
// for the merge.
template <class A>
GD_NOINLINE void few_compute(const Team& team, const A& a, Range mine, const FewScratch& own) {
  i64 start = 0;
  for (i64 i = 0; i < groups(a); ++i) {
    const Group x = group_after(a, i, start);
    start = x.keys.end;
    const i64 begin = most(x.keys.begin, mine.begin), end = least(x.keys.end, mine.end);
    if (x.empty() ? i % team.count != team.id : begin >= end) continue;
    const bool whole = x.empty() || x.inside(mine);
    float* sums = own.partial(whole ? -1 : x.keys.begin < mine.begin ? 0 : 1);
    const i64 shift = x.slots.begin - x.keys.begin;
    few_stretch(a, x.s, x.first, x.empty() ? Range{0, 0} : Range{begin + shift, end + shift}, own,
                sums);
    if (whole) few_finish(a, x.s.b, x.first, own, sums);
  }
}

// A group that was cut is merged by the thread that has its first key.
template <class A>
GD_NOINLINE void few_merge_cut(const Team& team, const A& a, i64 total, const FewScratch& own,
                               char* scratch) {
  const Range mine = few_share(total, team.id, team.count);
  i64 start = 0;
  for (i64 i = 0; i < groups(a); ++i) {
    const Group x = group_after(a, i, start);
    start = x.keys.end;
    if (x.empty() || x.inside(mine) || x.keys.begin < mine.begin || x.keys.begin >= mine.end)
      continue;
    for (int t = team.id + 1; t < team.count; ++t) {
      const Range theirs = few_share(total, t, team.count);
      if (theirs.begin >= x.keys.end || theirs.begin == theirs.end) continue;
      const FewScratch other(scratch, t, own.rows, own.together, a.dim, a.value_dim);
      few_merge(own.partial(1), other.partial(0), own.rows * own.together, own.sums_stride);
    }
    few_finish(a, x.s.b, x.first, own, own.partial(1));
  }
}

template <class A> GD_NOINLINE void few(const Team& team, const A& a, char* scratch) {
  const FewScratch own(scratch, team.id, a.tokens * (a.heads / a.kv_heads), heads_together(a),
                       a.dim, a.value_dim);
  const i64 total = all_keys(a);
  few_compute(team, a, few_share(total, team.id, team.count), own);
  team.barrier();
  few_merge_cut(team, a, total, own, scratch);
}

}  // namespace attending
}  // namespace gd
