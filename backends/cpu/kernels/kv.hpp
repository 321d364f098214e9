// Rotary embedding, and appending to KV caches of any layout.
#pragma once
#include "cache.hpp"
#include "simd.hpp"
#include "team.hpp"

namespace gd {

// [batch, token or slot, head, dim]; the last dimension is contiguous, the strides of the others
// count elements.
template <class T> struct View4 {
  T* p;
  i64 stride[3];
  GD_INLINE T* at(i64 b, i64 t, i64 h) const {
    return p + b * stride[0] + t * stride[1] + h * stride[2];
  }
};

template <class T> GD_INLINE void copy_row(const T* from, T* to, i64 n) {
  __builtin_memmove(to, from, size_t(n) * sizeof(T));
}

// The positions of a step, a row for every sequence; a token of padding has a negative one.
struct Positions {
  const int32_t* p;
  i64 stride, tokens;
  GD_INLINE i64 at(i64 b, i64 t) const { return p[b * stride + t]; }
  // Slots of a sequence after the step; 0 where all its tokens are padding.
  GD_NOINLINE i64 length(i64 b) const {
    i64 last = -1;
    for (i64 t = 0; t < tokens; ++t) last = most(last, at(b, t));
    return last + 1;
  }
  // Tokens of a sequence that are no padding.
  GD_NOINLINE i64 added(i64 b) const {
    i64 n = 0;
    for (i64 t = 0; t < tokens; ++t) n += at(b, t) >= 0;
    return n;
  }
};

// A thread's share of `each` items of every token of `batch` sequences, one after the other.  To
// divide for every row of a head would take as long as to turn it.
struct Walk {
  i64 b, t, item, left, each, tokens;
  Walk(const Team& team, i64 batch, i64 count, i64 of_token) : each(of_token), tokens(count) {
    const Range mine = team.share(batch * tokens * each);
    left = mine.end - mine.begin;
    const i64 token = left > 0 ? mine.begin / each : 0;
    item = mine.begin - token * each, b = left > 0 ? token / tokens : 0, t = token - b * tokens;
  }
  GD_INLINE void next() {
    --left;
    if (++item < each) return;
    item = 0;
    if (++t < tokens) return;
    t = 0, ++b;
  }
};

// The elements of a row of a cache: int8 rows end in their scale.
template <class E> GD_INLINE i64 row_width(i64 dim) {
  return same<E, int8_t>::value ? dim + i64(sizeof(float)) : dim;
}

template <class T> GD_INLINE void store_row(const T* x, T* to, i64 dim) { copy_row(x, to, dim); }
// Whole numbers of [-127, 127], the nearest and of two the even one, and what they are multiplied
// with.  A row with a NaN or an infinity reads as NaN; a row of zeros has the scale 0.
template <class T> GD_NOINLINE void store_row(const T* x, int8_t* to, i64 dim) {
  constexpr float round = 12582912.f;  // 1.5 * 2^23: a sum with it has no room for a fraction
  F top = splat(0.f);
  for_lanes(dim, [&](i64 i, auto l) { top = v_max(top, keep(v_abs(load(x + i, l)), l, 0.f)); });
  const float scale = max_of(top) / 127.f;
  const bool usable = scale > 0 && scale - scale == 0;
  const F by = splat(usable ? scale : 1.f), limit = splat(usable ? 127.f : 0.f);
  for_lanes(dim, [&](i64 i, auto l) {
    // Where x is NaN, raw_max gives its second operand.
    const F number = raw_min(raw_max(load(x + i, l) / by, -limit), limit);
    const I whole = (I)(number + round) - (I)splat(round);
    store_raw(reinterpret_cast<uint8_t*>(to + i), __builtin_convertvector((U)whole, B), l);
  });
  __builtin_memcpy(to + dim, &scale, sizeof(scale));
}
template <class T> GD_INLINE void load_row(const T* x, T* to, i64 dim) { copy_row(x, to, dim); }
template <class T> GD_INLINE void load_row(const int8_t* x, T* to, i64 dim) {
  const F scale = splat(row_scale(x, dim));
  for_lanes(dim, [&](i64 i, auto l) { store(to + i, load(x + i, l) * scale, l); });
}

// Where a slot of a sequence that then has `length` slots lies, or nullptr where a cache has no
// place for it.
template <class E>
GD_NOINLINE E* searched(const Cache<E>& cache, i64 b, i64 slot, i64 head, i64 length) {
  const i64 origin = cache.origin(length);
  const bool missing =
      cache.block > 0 && cache.table[b * cache.table_stride + slot / cache.block] < 0;
  return missing || origin + slot < 0 ? nullptr : cache.row(b, slot, head, origin);
}
template <class E>
GD_INLINE E* found(const Cache<E>& cache, i64 b, i64 slot, i64 head, i64 length) {
  if (slot < 0 || slot >= cache.slots) return nullptr;
  if (cache.block > 0 || cache.shifts) return searched(cache, b, slot, head, length);
  return cache.row(b, slot, head, 0);
}

// What is in a cache that shifts goes left by the tokens that come.  Nobody may write before a
// barrier.
template <class E>
GD_NOINLINE void make_room(const Team& team, const Cache<E>& cache, const Positions& positions,
                           i64 batch, i64 heads, i64 dim) {
  const i64 step = cache.stride[1], width = row_width<E>(dim);
  const Range mine = team.share(batch * heads);
  for (i64 i = mine.begin; i < mine.end; ++i) {
    const i64 b = i / heads, added = positions.added(b);
    const i64 first = most(0, cache.slots - positions.length(b)), end = cache.slots - added;
    if (added == 0 || first >= end) continue;
    E* to = cache.row(b, first, i % heads, 0);
    if (step == width)
      copy_row(to + added * step, to, (end - first) * step);
    else
      for (i64 slot = first; slot < end; ++slot, to += step) copy_row(to + added * step, to, width);
  }
}

// Row x[b, t] goes to slot positions[b, t] of the cache; a position that is no slot of it (a
// negative one is padding) goes nowhere.  All threads call it; it passes a barrier.
template <class T, class E>
GD_NOINLINE void kv_append(const Team& team, View4<const T> x, const Positions& positions,
                           const Cache<E>& cache, i64 batch, i64 heads, i64 dim) {
  if (cache.shifts) {
    make_room(team, cache, positions, batch, heads, dim);
    team.barrier();
  }
  i64 sequence = -1, length = 0;
  for (Walk w(team, batch, positions.tokens, heads); w.left > 0; w.next()) {
    if (cache.shifts && w.b != sequence) length = positions.length(sequence = w.b);
    if (E* const row = found(cache, w.b, positions.at(w.b, w.t), w.item, length))
      store_row(x.at(w.b, w.t, w.item), row, dim);
  }
}

// out[b, slot, h] is that row of the cache, or zeros where it has no block.
template <class E, class T>
GD_NOINLINE void relayout(const Team& team, const Cache<E>& cache, View4<T> out, i64 batch,
                          i64 heads, i64 dim) {
  const Range mine = team.share(batch * cache.slots * heads);
  for (i64 i = mine.begin; i < mine.end; ++i) {
    const i64 h = i % heads, slot = i / heads % cache.slots, b = i / heads / cache.slots;
    T* const to = out.at(b, slot, h);
    if (E* const row = found(cache, b, slot, h, 0))
      load_row(row, to, dim);
    else
      __builtin_memset(static_cast<void*>(to), 0, size_t(dim) * sizeof(T));
  }
}

namespace rotary {

// The elements of a row as they are.
template <class T> struct Plain {
  const T* x;
  template <class L> GD_INLINE F load_at(i64 i, L l) const { return load(x + i, l); }
  GD_INLINE float at(i64 i) const { return to_float(x[i]); }
};
// The elements of a row divided by the root of their mean square, times a weight; all in f32.
template <class T, class Weight> struct Normed {
  const T* x;
  const Weight* weight;
  float scale;

  GD_INLINE Normed(const T* row, const Weight* w, i64 dim, float eps)
      : x(row), weight(w), scale(0) {
    F squares = splat(0.f);
    for_lanes(dim, [&](i64 i, auto l) {
      const F v = load(row + i, l);
      squares = squares + keep(v * v, l, 0.f);
    });
    scale = 1.f / __builtin_sqrtf(sum(squares) / float(dim) + eps);
  }
  template <class L> GD_INLINE F load_at(i64 i, L l) const {
    return load(x + i, l) * splat(scale) * load(weight + i, l);
  }
  GD_INLINE float at(i64 i) const { return to_float(x[i]) * scale * to_float(weight[i]); }
};

// Pairs (i, i + rotary / 2).  `out` may be what x reads.
template <class T, class Row>
GD_INLINE void half_split(Row x, const float* cos, const float* sin, T* out, i64 half) {
  for_lanes(half, [&](i64 i, auto l) {
    const F a = x.load_at(i, l), b = x.load_at(half + i, l), c = load(cos + i, l),
            s = load(sin + i, l);
    store(out + i, a * c - b * s, l);
    store(out + half + i, b * c + a * s, l);
  });
}
// Pairs (2 i, 2 i + 1).
template <class T, class Row>
GD_INLINE void interleaved(Row x, const float* cos, const float* sin, T* out, i64 half) {
  for (i64 i = 0; i < half; ++i) {
    const float a = x.at(2 * i), b = x.at(2 * i + 1);
    put(out + 2 * i, a * cos[i] - b * sin[i]);
    put(out + 2 * i + 1, b * cos[i] + a * sin[i]);
  }
}
template <class T, class Row>
GD_INLINE void turn(Row x, const float* cos, const float* sin, T* out, i64 turned, bool pairs) {
  if (pairs)
    interleaved(x, cos, sin, out, turned / 2);
  else
    half_split(x, cos, sin, out, turned / 2);
}
template <class T>
GD_NOINLINE void row(const T* x, const float* cos, const float* sin, T* out, i64 dim, i64 turned,
                     bool pairs) {
  turn(Plain<T>{x}, cos, sin, out, turned, pairs);
  if (out != x && dim > turned) copy_row(x + turned, out + turned, dim - turned);
}
// The row is normed first; `out` may not be `x`.
template <class T, class Weight>
GD_NOINLINE void normed_row(const T* x, const Weight* weight, float eps, const float* cos,
                            const float* sin, T* out, i64 dim, i64 turned, bool pairs) {
  const Normed<T, Weight> normed(x, weight, dim, eps);
  turn(normed, cos, sin, out, turned, pairs);
  for_lanes(dim - turned,
            [&](i64 i, auto l) { store(out + turned + i, normed.load_at(turned + i, l), l); });
}

}  // namespace rotary

// Rows cos[b, t] and sin[b, t] of rotary / 2 floats each, at b * stride[0] + t * stride[1].
struct Angles {
  const float *cos, *sin;
  i64 stride[2];
  GD_INLINE i64 at(i64 b, i64 t) const { return b * stride[0] + t * stride[1]; }
};

// Turns the first `rotary` dims of every head by the angles of its token; the others pass through.
// `out` may be `x`.
template <class T>
GD_NOINLINE void rope(const Team& team, View4<const T> x, Angles angles, View4<T> out, i64 batch,
                      i64 tokens, i64 heads, i64 dim, i64 rotary, bool interleaved) {
  const Range mine = team.share(batch * tokens * heads);
  for (i64 i = mine.begin; i < mine.end; ++i) {
    const i64 h = i % heads, t = i / heads % tokens, b = i / heads / tokens, at = angles.at(b, t);
    rotary::row(x.at(b, t, h), angles.cos + at, angles.sin + at, out.at(b, t, h), dim, rotary,
                interleaved);
  }
}

// rope on q and k, and k and v appended to their caches, in one pass over the tokens.
template <class T, class K = T, class V = T> struct RopeAppend {
  View4<const T> q, k, v;
  Angles angles;
  Positions positions;
  View4<T> q_out;
  Cache<K> k_cache;
  Cache<V> v_cache;
  i64 batch, heads, kv_heads, dim, value_dim, rotary;
  bool interleaved;
};
// A k cache of T has its rows made in place; those of another are made in scratch, where every
// thread has round_up(dim * sizeof(T), 64) bytes.  turn(x, is_q, cos, sin, out) makes a row of q or
// k.
template <class T, class K, class V, class Turn>
GD_INLINE void turn_and_append(const Team& team, const RopeAppend<T, K, V>& r,
                               [[maybe_unused]] char* scratch, Turn turn) {
  const bool shifts = r.k_cache.shifts || r.v_cache.shifts;
  if (shifts) {
    if (r.k_cache.shifts) make_room(team, r.k_cache, r.positions, r.batch, r.kv_heads, r.dim);
    if (r.v_cache.shifts) make_room(team, r.v_cache, r.positions, r.batch, r.kv_heads, r.value_dim);
    team.barrier();
  }
  i64 sequence = -1, length = 0;
  for (Walk w(team, r.batch, r.positions.tokens, r.heads + 2 * r.kv_heads); w.left > 0; w.next()) {
    const i64 b = w.b, t = w.t, j = w.item;
    const i64 at = r.angles.at(b, t), slot = r.positions.at(b, t);
    const float *cos = r.angles.cos + at, *sin = r.angles.sin + at;
    if (j < r.heads) {
      turn(r.q.at(b, t, j), true, cos, sin, r.q_out.at(b, t, j));
      continue;
    }
    if (shifts && b != sequence) length = r.positions.length(sequence = b);
    const i64 g = (j - r.heads) / 2;
    if ((j - r.heads) % 2 == 1) {
      if (V* const row = found(r.v_cache, b, slot, g, length))
        store_row(r.v.at(b, t, g), row, r.value_dim);
    } else if (K* const row = found(r.k_cache, b, slot, g, length)) {
      if constexpr (same<K, T>::value) {
        turn(r.k.at(b, t, g), false, cos, sin, row);
      } else {
        const i64 own = round_up(r.dim * i64(sizeof(T)), 64);
        T* const made = reinterpret_cast<T*>(scratch + team.id * own);
        turn(r.k.at(b, t, g), false, cos, sin, made);
        store_row(made, row, r.dim);
      }
    }
  }
}
// All threads call it; it passes a barrier.
template <class T, class K, class V>
GD_NOINLINE void rope_append(const Team& team, const RopeAppend<T, K, V>& r, char* scratch) {
  const auto turn = [&](const T* x, bool, const float* cos, const float* sin, T* out) {
    rotary::row(x, cos, sin, out, r.dim, r.rotary, r.interleaved);
  };
  turn_and_append(team, r, scratch, turn);
}

// The same where every head of q and of k is normed first.
template <class T, class Weight, class K = T, class V = T> struct NormRopeAppend {
  RopeAppend<T, K, V> rope;
  const Weight *q_weight, *k_weight;
  float eps;
};
template <class T, class Weight, class K, class V>
GD_NOINLINE void norm_rope_append(const Team& team, const NormRopeAppend<T, Weight, K, V>& n,
                                  char* scratch) {
  const RopeAppend<T, K, V>& r = n.rope;
  const auto turn = [&](const T* x, bool is_q, const float* cos, const float* sin, T* out) {
    rotary::normed_row(x, is_q ? n.q_weight : n.k_weight, n.eps, cos, sin, out, r.dim, r.rotary,
                       r.interleaved);
  };
  turn_and_append(team, r, scratch, turn);
}

}  // namespace gd
