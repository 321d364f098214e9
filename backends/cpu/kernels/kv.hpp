// Rotary embedding and appending to the KV cache.
#pragma once
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

// Row x[b, t] goes to slot positions[b, t] of the cache; a position that is no slot of it (a
// negative one is padding) goes nowhere.
template <class T>
GD_NOINLINE void kv_append(const Team& team, View4<const T> x, const int32_t* positions,
                           i64 position_stride, View4<T> cache, i64 slots, i64 batch, i64 tokens,
                           i64 heads, i64 dim) {
  const Range mine = team.share(batch * tokens * heads);
  for (i64 i = mine.begin; i < mine.end; ++i) {
    const i64 h = i % heads, t = i / heads % tokens, b = i / heads / tokens;
    const i64 slot = positions[b * position_stride + t];
    if (slot >= 0 && slot < slots) copy_row(x.at(b, t, h), cache.at(b, slot, h), dim);
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
template <class T> struct RopeAppend {
  View4<const T> q, k, v;
  Angles angles;
  const int32_t* positions;
  i64 position_stride;
  View4<T> q_out, k_cache, v_cache;
  i64 slots, batch, tokens, heads, kv_heads, dim, value_dim, rotary;
  bool interleaved;
};
// turn(x, is_q, cos, sin, out) makes a row of q or k.
template <class T, class Turn>
GD_INLINE void turn_and_append(const Team& team, const RopeAppend<T>& r, Turn turn) {
  const i64 per_token = r.heads + 2 * r.kv_heads;
  const Range mine = team.share(r.batch * r.tokens * per_token);
  for (i64 i = mine.begin; i < mine.end; ++i) {
    const i64 j = i % per_token, t = i / per_token % r.tokens, b = i / per_token / r.tokens;
    const i64 at = r.angles.at(b, t), slot = r.positions[b * r.position_stride + t];
    const float *cos = r.angles.cos + at, *sin = r.angles.sin + at;
    if (j < r.heads) {
      turn(r.q.at(b, t, j), true, cos, sin, r.q_out.at(b, t, j));
      continue;
    }
    if (slot < 0 || slot >= r.slots) continue;
    const i64 g = (j - r.heads) / 2;
    if ((j - r.heads) % 2 == 0)
      turn(r.k.at(b, t, g), false, cos, sin, r.k_cache.at(b, slot, g));
    else
      copy_row(r.v.at(b, t, g), r.v_cache.at(b, slot, g), r.value_dim);
  }
}
template <class T> GD_NOINLINE void rope_append(const Team& team, const RopeAppend<T>& r) {
  turn_and_append(team, r, [&](const T* x, bool, const float* cos, const float* sin, T* out) {
    rotary::row(x, cos, sin, out, r.dim, r.rotary, r.interleaved);
  });
}

// The same where every head of q and of k is normed first.
template <class T, class Weight> struct NormRopeAppend {
  RopeAppend<T> rope;
  const Weight *q_weight, *k_weight;
  float eps;
};
template <class T, class Weight>
GD_NOINLINE void norm_rope_append(const Team& team, const NormRopeAppend<T, Weight>& n) {
  const RopeAppend<T>& r = n.rope;
  turn_and_append(team, r, [&](const T* x, bool is_q, const float* cos, const float* sin, T* out) {
    rotary::normed_row(x, is_q ? n.q_weight : n.k_weight, n.eps, cos, sin, out, r.dim, r.rotary,
                       r.interleaved);
  });
}

}  // namespace gd
