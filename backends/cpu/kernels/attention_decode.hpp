// Attention of few queries: every thread reads one stretch of the cache, all heads of a group at
// once, and partial results of a stretch that was cut are merged at the end.
#pragma once
#include "attention_rows.hpp"

namespace gd {
namespace attending {

constexpr i64 few_queries = 16;  // tokens times heads of a group
constexpr i64 fetched_ahead = 8192;  // bytes of the cache
constexpr i64 shared_keys = 16;  // of a tile that all heads read: few enough to stay in L1

// Not more than a tile has, since no more than the next tile is known.
template <class E> GD_INLINE i64 rows_ahead(i64 dim, i64 keys) {
  return most(1, least(fetched_ahead / row_bytes<E>(dim), keys));
}

// Where a thread keeps what it is working on, and the two stretches that it may share with others.
// There are `rows` queries for each of the `together` heads of the cache that are read at once.
struct FewScratch {
  i64 q_stride, sums_stride, rows, together;
  float *q, *scores, *work, *shared;

  static i64 floats(i64 rows, i64 together, i64 dim, i64 value_dim) {
    const i64 q = query_stride(dim), v = unpacked_floats(value_dim), all = rows * together;
    return round_up(all * (q + 3 * (v + 16)) + rows * scores_stride, 16);
  }
  FewScratch(char* base, int thread, i64 rows_, i64 together_, i64 dim, i64 value_dim)
      : q_stride(query_stride(dim)),
        sums_stride(unpacked_floats(value_dim) + 16),
        rows(rows_),
        together(together_) {
    q = reinterpret_cast<float*>(base) + thread * floats(rows, together, dim, value_dim);
    work = q + rows * together * q_stride;
    shared = work + rows * together * sums_stride;
    scores = shared + 2 * rows * together * sums_stride;  // last: they are not whole vectors
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
// The rows of a tile in the order in which they are read: keys, values, and the first keys of the
// next tile.  What is fetched meanwhile stands a little further on: wherever rows lie, no tile
// begins by waiting for its first ones, and nothing is copied to say so.
template <class K, class V> struct Order {
  Address row[3 * tile_keys];
  i64 whole, k_ahead, v_ahead;

  template <class A>
  GD_INLINE Order(const A& a, const Sequence& of, const Tile& tile)
      : whole(round_up(tile.keys, W)),
        k_ahead(rows_ahead<K>(a.dim, tile.keys)),
        v_ahead(rows_ahead<V>(a.value_dim, tile.keys)) {
    const i64 then = least(tile.then, v_ahead);
    find_rows(a.k, of, tile.first + tile.i, tile.key, tile.keys, at<K>(0));
    find_rows(a.v, of, tile.first + tile.i, tile.key, tile.keys, at<V>(whole));
    find_rows(a.k, of, tile.first + tile.next_i, tile.next_key, then, at<K>(2 * whole));
    for (i64 i = round_up(then, W); i < v_ahead; ++i) row[2 * whole + i] = row[0];
  }
  template <class E> GD_INLINE const E** at(i64 i) {
    return reinterpret_cast<const E**>(row + i);
  }
  GD_INLINE Reading<K> keys(i64 dim) { return {at<K>(0), row + k_ahead, dim}; }
  GD_INLINE Reading<V> values(i64 dim) { return {at<V>(whole), row + whole + v_ahead, dim}; }
};
template <class T, class K, class V>
GD_NOINLINE void few_tile(const Attention<T, K, V>& a, const Sequence& of, const Tile& tile,
                          const float* q, const FewScratch& s, float* sums) {
  const i64 group = a.heads / a.kv_heads, g = tile.first + tile.i, key = tile.key;
  const i64 keys = tile.keys;
  Order<K, V> order(a, of, tile);
  dot_keys(q, s.q_stride, s.rows, order.keys(a.dim), keys, s.scores);
  for (i64 r = 0; r < s.rows; ++r) {
    const i64 t = r / group;
    float* row = sums + r * s.sums_stride;
    Range see = seen(a, of, t);
    see.end = least(see.end, key + keys);
    Running run = get_running(row);
    const float shrink = soften(a, of, g * group + r % group, t, s.scores + r * scores_stride, key,
                                round_up(keys, W), see, run);
    set_running(row, run);
    shrink_row(row + 16, s.sums_stride - 16, shrink);
  }
  add_keys(s.scores, s.rows, order.values(a.value_dim), keys, sums + 16, s.sums_stride);
}

template <class A>
GD_NOINLINE void few_begin(const A& a, i64 b, i64 first, const FewScratch& s, float* sums) {
  const i64 group = a.heads / a.kv_heads;
  for (i64 r = 0; r < s.rows * s.together; ++r) {
    const i64 t = r % s.rows / group, h = (first + r / s.rows) * group + r % s.rows % group;
    float* q = s.q + r * s.q_stride;
    __builtin_memset(q, 0, size_t(s.q_stride) * 4);
    scale_row(a.q + b * a.q_stride[0] + t * a.q_stride[1] + h * a.q_stride[2], a.scale, a.dim, q);
    to_unpacked<typename A::Key>(q, unpacked_floats(a.dim));
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
                         least(step, last ? keys.end - after : n)};
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
    to_plain<typename A::Value>(row + 16, s.sums_stride - 16);
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
