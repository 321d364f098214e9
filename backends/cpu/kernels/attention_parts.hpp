// What the two attention paths share: the arguments, what a query sees, and one step of the online
// softmax.
#pragma once
#include "cache.hpp"
#include "matmul_tile.hpp"
#include "team.hpp"

namespace gd {

// out[b, t, h] = softmax(scale q[b, t, h] k[b, :, g] + mask) v[b, :, g], g = h / (heads /
// kv_heads).  Strides count elements; the last dimensions are contiguous.  A query that sees
// nothing gives zeros.  Rows of k and v are T, or int8_t with a scale.
template <class T, class K = T, class V = T> struct Attention {
  using Type = T;
  using Key = K;
  using Value = V;
  const T* q;
  Cache<const K> k;
  Cache<const V> v;
  T* out;
  const int32_t* positions;  // [batch, tokens]; -1 is padding, which gives zeros; nullptr:
                             // token t stands at slot t
  i64 batch, tokens, heads, kv_heads, dim, value_dim;
  i64 q_stride[3], out_stride[3];  // b, t, head
  i64 position_stride;
  bool causal;
  i64 window;            // causal only: the number of last slots seen; 0: all
  float scale, softcap;  // softcap 0: none
  const void* mask;
  int mask_kind;       // 0 none, 1 bool (true: attend), 2 f32 to add, 3 T to add
  i64 mask_stride[4];  // b, h, t, s; 0 broadcasts
  i64 mask_keys;       // that the mask speaks of: those beyond it are unseen
  // If given, takes every finished row, in f32, in place of `out`.
  void (*finish)(const void* with, i64 b, i64 t, i64 h, const float* row);
  const void* finish_with;
};

namespace attending {

constexpr i64 tile_keys = 64;
static_assert(tile_keys % NB == 0, "a tile is whole panels");
constexpr float nothing = -__builtin_inff();

// Sequence b: how many slots it fills, known where that says where they are, and where those end
// that can be seen.
struct Sequence {
  i64 b, length, end;
};
template <class A> inline Sequence sequence(const A& a, i64 b) {
  const i64 end = a.mask_kind != 0 ? least(a.k.slots, a.mask_keys) : a.k.slots;
  if (!a.k.shifts && !a.v.shifts) return {b, 0, end};
  i64 length = a.positions ? 0 : a.tokens;
  for (i64 t = 0; a.positions && t < a.tokens; ++t)
    length = most(length, a.positions[b * a.position_stride + t] + 1);
  return {b, length, least(end, length)};
}

template <class A> GD_INLINE Range seen(const A& a, const Sequence& s, i64 t) {
  i64 p = t;
  if (a.positions) {
    p = a.positions[s.b * a.position_stride + t];
    if (p < 0) return {0, 0};
  }
  if (!a.causal) return {0, s.end};
  const i64 end = most(0, least(p + 1, s.end));
  return {a.window > 0 ? least(most(0, p + 1 - a.window), end) : 0, end};
}
// From the first to the last slot that any of these tokens sees.
template <class A> inline Range seen_by_any(const A& a, const Sequence& s, i64 begin, i64 end) {
  Range all = {s.end, 0};
  for (i64 t = begin; t < end; ++t) {
    const Range one = seen(a, s, t);
    if (one.begin >= one.end) continue;
    all = {least(all.begin, one.begin), most(all.end, one.end)};
  }
  return all.begin < all.end ? all : Range{0, 0};
}

// Where the rows of a tile of keys or values begin; those that fill up the last vector are the last
// one again.
template <class E>
GD_INLINE void find_rows(const Cache<const E>& c, const Sequence& s, i64 head, i64 slot, i64 n,
                         const E** row) {
  c.rows(s.b, slot, n, head, c.origin(s.length), row);
  for (i64 i = n; i < round_up(n, W); ++i) row[i] = row[n - 1];
}

// Adds the mask of one row to `n` scores from slot `key`.
template <class E> GD_INLINE void add_mask(const E* mask, i64 step, i64 n, float* scores) {
  for (i64 i = 0; i < n; ++i) {
    if constexpr (same<E, uint8_t>::value)
      scores[i] = mask[i * step] ? scores[i] : nothing;
    else
      scores[i] += to_float(mask[i * step]);
  }
}
template <class A>
GD_NOINLINE void mask_row(const A& a, const Sequence& s, i64 h, i64 t, i64 key, i64 n,
                          float* scores) {
  using T = typename A::Type;
  const i64 step = a.mask_stride[3];
  const i64 at = s.b * a.mask_stride[0] + h * a.mask_stride[1] + t * a.mask_stride[2] + key * step;
  n = least(n, s.end - key);
  if (a.mask_kind == 1) add_mask(static_cast<const uint8_t*>(a.mask) + at, step, n, scores);
  if (a.mask_kind == 2) add_mask(static_cast<const float*>(a.mask) + at, step, n, scores);
  if (a.mask_kind == 3) add_mask(static_cast<const T*>(a.mask) + at, step, n, scores);
}

struct Running {
  float top, total;  // of the scores so far: nearly the largest, and the sum of exp(score - top)
};
// How far scores may rise above `top` before that moves, which costs a pass over the sums.
constexpr float slack = 8;

GD_NOINLINE inline void cap_row(float* scores, i64 n, float cap) {
  for (i64 i = 0; i < n; i += W)
    store(scores + i, cap * v_tanh(load(scores + i, Full{}) / cap), Full{});
}

// Scores [i, i + W) become `nothing` outside [low, high).
GD_INLINE void hide(float* scores, i64 i, i64 low, i64 high) {
  const I at = lane_index() + int32_t(i);
  const F s = load(scores + i, Full{});
  store(scores + i, (at >= int32_t(low)) & (at < int32_t(high)) ? s : splat(nothing), Full{});
}

// Turns scores[n] (n whole vectors) of slots `key`.. into exp(score - top), zero outside `see`;
// what was summed before must be multiplied with the result.  A NaN reaches the total, and so the
// output.
inline float soften_row(float* scores, i64 key, i64 n, Range see, Running& run) {
  constexpr float log2_e = 1.44269504f;
  const i64 low = most(0, least(see.begin - key, n)), high = most(0, least(see.end - key, n));
  for (i64 i = 0; i < low; i += W) hide(scores, i, low, high);
  for (i64 i = high / W * W; i < n; i += W) hide(scores, i, low, high);
  F best = splat(nothing);
  for (i64 i = 0; i < n; i += W) best = raw_max(best, load(scores + i, Full{}));
  const float here = max_of(best);
  const float top = here > run.top + slack ? here : run.top;
  const float base = top == nothing ? 0 : top;
  F total = splat(0);
  for (i64 i = 0; i < n; i += W) {
    const F e = exp2_small((load(scores + i, Full{}) - base) * log2_e);
    store(scores + i, e, Full{});
    total += e;
  }
  const float shrink = top == run.top ? 1.f : v_exp(splat(run.top - top))[0];
  run = {top, run.total * shrink + sum(total)};
  return shrink;
}
template <class A>
GD_NOINLINE float soften(const A& a, const Sequence& s, i64 h, i64 t, float* scores, i64 key,
                         i64 n, Range see, Running& run) {
  if (a.softcap > 0) cap_row(scores, n, a.softcap);
  if (a.mask_kind != 0) mask_row(a, s, h, t, key, n, scores);
  return soften_row(scores, key, n, see, run);
}

// The rows of x times `factor` in f32.
template <class T> GD_INLINE void scale_row(const T* x, float factor, i64 n, float* to) {
  for_lanes(n, [&](i64 i, auto l) { store(to + i, load(x + i, l) * factor, l); });
}
// Sums over fewer keys, brought to the present top; n is whole vectors.
GD_INLINE void shrink_row(float* sums, i64 n, float shrink) {
  if (shrink == 1) return;
  for (i64 i = 0; i < n; i += W) store(sums + i, load(sums + i, Full{}) * shrink, Full{});
}
// The row of token t and head h: stored, or given to what follows.
template <class A>
GD_NOINLINE void finish_row(const A& a, i64 b, i64 t, i64 h, float* sums, float total) {
  const float factor = total == 0 ? 0.f : 1 / total;
  const auto row = [&](auto* to) {
    for_lanes(a.value_dim, [&](i64 i, auto l) {
      store(to + i, total == 0 ? splat(0) : load(sums + i, l) * factor, l);
    });
  };
  if (!a.finish)
    return row(a.out + b * a.out_stride[0] + t * a.out_stride[1] + h * a.out_stride[2]);
  row(sums);
  a.finish(a.finish_with, b, t, h, sums);
}

}  // namespace attending
}  // namespace gd
