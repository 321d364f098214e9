// Attention of many queries: blocks of queries (all heads of a group together) against tiles of
// keys that are unpacked into panels, so that both products run in the matmul tile.
#pragma once
#include "attention_parts.hpp"

namespace gd {
namespace attending {

constexpr i64 block_queries = 48 * R;
constexpr i64 step_keys = 128;  // keys that are unpacked at a time
static_assert(step_keys % NB == 0, "a step is whole panels");
// Rows that are read side by side must not come from the same banks of L1, as rows would that lie
// a power of two apart: each begins 8 bytes further on.
constexpr i64 apart = 2;
constexpr i64 weights_stride = step_keys + apart;

GD_INLINE i64 block_tokens(i64 group) { return most(1, block_queries / group); }

template <class E> struct TileRows {
  const E* row[step_keys];
  GD_INLINE TileRows(const Cache<const E>& c, const Sequence& s, i64 head, i64 slot, i64 n) {
    find_rows(c, s, head, slot, n, row);
  }
};

template <int S> GD_INLINE void transpose_level(F (&v)[W]) {
  I low, high;
  for (int l = 0; l < W; ++l) {
    low[l] = l & S ? (l ^ S) + W : l;
    high[l] = l & S ? l + W : l ^ S;
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const F a = v[i], b = v[i | S];
    v[i] = __builtin_shuffle(a, b, low);
    v[i | S] = __builtin_shuffle(a, b, high);
  }
  if constexpr (S > 1) transpose_level<S / 2>(v);
}

// keys x dim as panels [step_keys / NB][dim][NB]; the keys that fill up a vector repeat the last
// one.
template <class E>
GD_NOINLINE void pack_keys(const TileRows<E>& k, i64 keys, i64 dim, float* to) {
  for (i64 i = 0; i < keys; i += W) {
    float* panel = to + i / NB * dim * NB + i % NB;
    const E* row[W];
    for (int l = 0; l < W; ++l) row[l] = k.row[i + l];
    const F scale = row_scales(row, dim);
    for_lanes(dim, [&](i64 d, auto lanes) {
      F v[W];
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) v[l] = load(row[l] + d, lanes);
      transpose_level<W / 2>(v);
      for (int l = 0; l < lane_count(lanes); ++l)
        store(panel + (d + l) * NB, scaled<E>(v[l], scale), Full{});
    });
  }
}

// keys x dim as panels [ceil(dim / NB)][step_keys][NB]; columns beyond dim keep the zeros they
// start with.
template <class E>
GD_NOINLINE void pack_values(const TileRows<E>& v, i64 keys, i64 dim, float* to) {
  for (i64 i = 0; i < keys; ++i) {
    const E* row = v.row[i];
    const F scale = splat(row_scale(row, dim));
    for_lanes(dim, [&](i64 d, auto lanes) {
      store(to + (d / NB * step_keys + i) * NB + d % NB, scaled<E>(load(row + d, lanes), scale),
            lanes);
    });
  }
}

struct ManyScratch {
  i64 q_stride, sums_stride;
  float *q, *scores, *keys, *values, *sums;
  Running* running;

  static i64 queries(i64 group) { return round_up(most(block_queries, group), R); }
  static i64 floats(i64 group, i64 dim, i64 value_dim) {
    const i64 v = panels(value_dim) * NB;
    const i64 rows = queries(group) * (round_up(dim, 16) + apart + v + 2);
    return round_up(rows + R * weights_stride + step_keys * (dim + v), 16) + 64;
  }
  ManyScratch(char* base, int thread, i64 group, i64 dim, i64 value_dim)
      : q_stride(round_up(dim, 16) + apart), sums_stride(panels(value_dim) * NB) {
    float* at = reinterpret_cast<float*>(base) + thread * floats(group, dim, value_dim);
    keys = at;
    values = keys + step_keys * dim;
    scores = values + step_keys * sums_stride;
    sums = scores + R * weights_stride;
    q = sums + queries(group) * sums_stride;
    running = reinterpret_cast<Running*>(q + queries(group) * q_stride);
  }
};

// The queries of one job: tokens [begin, end) and all heads of group g, in rows token by token.
struct Job {
  Sequence s;
  i64 g, group, begin, end;
  i64 rows() const { return (end - begin) * group; }
  i64 token(i64 row) const { return begin + row / group; }
  i64 head(i64 row) const { return g * group + row % group; }
};

template <class A>
GD_NOINLINE void strip(const A& a, const Job& job, i64 row, i64 key, i64 keys,
                       const ManyScratch& s) {
  const int n = int(least(R, job.rows() - row));
  const Range see = seen_by_any(a, job.s, job.token(row), job.token(row + n - 1) + 1);
  const i64 from = most(0, see.begin - key) / NB * NB, needed = least(keys, see.end - key);
  if (from >= needed) return;
  const char *q[R], *p[R];
  for (int i = 0; i < n; ++i) {
    q[i] = reinterpret_cast<const char*>(s.q + (row + i) * s.q_stride);
    p[i] = reinterpret_cast<const char*>(s.scores + i * weights_stride + from);
  }
  for (i64 at = from; at < needed; at += NB)
    tile_rows<F32Words>(q, n, reinterpret_cast<const char*>(s.keys + at * a.dim), a.dim,
                        s.scores + at, weights_stride, false);
  for (int i = 0; i < n; ++i) {
    Range one = seen(a, job.s, job.token(row + i));
    one.end = least(one.end, key + keys);
    float* sums = s.sums + (row + i) * s.sums_stride;
    const float shrink =
        soften(a, job.s, job.head(row + i), job.token(row + i),
               s.scores + i * weights_stride + from, key + from, round_up(needed, W) - from, one,
               s.running[row + i]);
    shrink_row(sums, s.sums_stride, shrink);
  }
  for (i64 d = 0; d < s.sums_stride; d += NB)
    tile_rows<F32Words>(p, n, reinterpret_cast<const char*>(s.values + d * step_keys + from * NB),
                        needed - from,
                        s.sums + row * s.sums_stride + d, s.sums_stride, true);
}

template <class A>
GD_NOINLINE void many_job(const A& a, const Job& job, const ManyScratch& s) {
  const i64 rows = job.rows();
  for (i64 r = 0; r < rows; ++r) {
    s.running[r] = {nothing, 0};
    scale_row(
        a.q + job.s.b * a.q_stride[0] + job.token(r) * a.q_stride[1] + job.head(r) * a.q_stride[2],
        a.scale, a.dim, s.q + r * s.q_stride);
  }
  __builtin_memset(s.sums, 0, size_t(rows * s.sums_stride) * 4);
  __builtin_memset(s.values, 0, size_t(step_keys * s.sums_stride) * 4);
  const Range see = seen_by_any(a, job.s, job.begin, job.end);
  for (i64 key = see.begin; key < see.end; key += step_keys) {
    const i64 keys = least(step_keys, see.end - key);
    pack_keys(TileRows(a.k, job.s, job.g, key, keys), keys, a.dim, s.keys);
    pack_values(TileRows(a.v, job.s, job.g, key, keys), keys, a.value_dim, s.values);
    for (i64 row = 0; row < rows; row += R) strip(a, job, row, key, keys, s);
  }
  for (i64 r = 0; r < rows; ++r)
    finish_row(a, job.s.b, job.token(r), job.head(r), s.sums + r * s.sums_stride,
               s.running[r].total);
}

// Jobs are handed out one by one, the last tokens, which see the most, first.
template <class A> GD_NOINLINE void many(const Team& team, const A& a, char* scratch) {
  const i64 group = a.heads / a.kv_heads, block = block_tokens(group),
            groups = a.batch * a.kv_heads;
  const i64 blocks = (a.tokens + block - 1) / block;
  const ManyScratch own(scratch, team.id, group, a.dim, a.value_dim);
  team.barrier();
  team.reset_tickets();
  team.barrier();
  for (i64 i = team.take_ticket(); i < blocks * groups; i = team.take_ticket()) {
    const i64 begin = (blocks - 1 - i / groups) * block, at = i % groups;
    const Sequence s = sequence(a, at / a.kv_heads);
    many_job(a, Job{s, at % a.kv_heads, group, begin, least(begin + block, a.tokens)}, own);
  }
}

}  // namespace attending
}  // namespace gd
