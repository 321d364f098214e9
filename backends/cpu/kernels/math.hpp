// Elementary functions on vectors; the polynomials are weighted least-squares fits to f32 accuracy
// (relative 1e-6 or better).
#pragma once
#include "simd.hpp"

namespace gd {

GD_INLINE F horner(F, F p) { return p; }
template <class... C> GD_INLINE F horner(F x, F p, float c, C... rest) {
  return horner(x, fma(p, x, splat(c)), rest...);
}
// Polynomial with the highest power's coefficient first.
template <class... C> GD_INLINE F poly(F x, float c, C... rest) {
  return horner(x, splat(c), rest...);
}

// Nearest whole number of |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
GD_INLINE F round_small(F x) {
  const F magic = splat(12582912.f);
  return (x + magic) - magic;
}
GD_INLINE F power_of_two(I n) { return (F)((n + 127) << 23); }

// exp(-inf) = 0, exp(inf) = inf, NaN kept; results below the normal range are denormal as they
// should be.
GD_INLINE F v_exp(F x) {
  x = raw_min(splat(89.f), raw_max(splat(-105.f), x));
  const F shift = splat(12582912.f);  // 1.5 * 2^23: the sum's last bits are the nearest integer
  const F shifted = fma(x, splat(1.44269504f), shift), n = shifted - shift;
  const I whole = (I)shifted - (I)shift;
  const F r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  const F q = poly(r, 1.991808676e-4f, 1.394725638e-3f, 8.333264850e-3f, 4.166625440e-2f,
                   1.666666716e-1f, .5f);
  const F e = fma(r * r, q, r) + 1.f;
  const I half = whole >> 1;  // in two steps, since 2^128 and 2^-150 are not normal floats
  return e * power_of_two(half) * power_of_two(whole - half);
}

// 2^x of what is not far above zero: 0 from -126.5 down, NaN kept.
GD_INLINE F exp2_small(F x) {
  const F c = raw_max(splat(-127.f), x);
  const F shift = splat(12583039.f);  // 1.5 * 2^23 + 127: the sum's last bits are the exponent's
  const F shifted = c + shift, r = c - (shifted - shift);
  const F e = poly(r, 1.326472615e-3f, 9.671512991e-3f, 5.550733581e-2f, 2.402224243e-1f,
                   6.931470037e-1f, 1.f);
  return e * (F)((I)shifted << 23);
}

GD_INLINE F v_log(F x) {
  const I tiny = x < 1.17549435e-38f;
  const F scaled = tiny ? x * 16777216.f : x;
  const I bits = (I)scaled;
  I exponent = ((bits >> 23) & 255) - 126;
  F m = (F)((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  const I low = m < 0.707106781f;
  m = low ? m + m : m;
  exponent = exponent + low - (tiny & 24);
  const F s = (m - 1.f) / (m + 1.f), z = s * s;
  const F e = to_f(exponent);
  const F p = z * s * poly(z, 2.361052930e-1f, 2.853589058e-1f, 4.000035524e-1f, 6.666666269e-1f);
  F y = fma(e, splat(-2.12194440e-4f), p) + 2.f * s;
  y = fma(e, splat(0.693359375f), y);
  y = x == 0.f ? splat(-__builtin_inff()) : y;
  y = x < 0.f ? splat(__builtin_nanf("")) : y;
  return (x == __builtin_inff()) | (x != x) ? x : y;
}

GD_INLINE F v_sigmoid(F x) { return 1.f / (1.f + v_exp(-x)); }

GD_INLINE F v_tanh(F x) {
  const F a = v_abs(x), z = x * x;
  const F small = fma(x * z,
                      poly(z, -5.717025604e-3f, 2.065056935e-2f, -5.374349281e-2f, 1.333149076e-1f,
                           -3.333328366e-1f),
                      x);
  const F large = 1.f - 2.f / (v_exp(a + a) + 1.f);
  return a < .625f ? small : (x < 0.f ? -large : large);
}

// x P(x^2) up to 1; beyond it 1 - exp(P(|x|)), which is 1 in f32 from 4 on.
GD_INLINE F v_erf(F x) {
  const F a = v_abs(x), z = x * x;
  const F small = x * poly(z, 7.889114931e-5f, -8.020839887e-4f, 5.189535208e-3f, -2.685444430e-2f,
                           1.128360033e-1f, -3.761262596e-1f, 1.128379107f);
  const F c = raw_min(splat(4.f), a);
  const F large =
      1.f - v_exp(poly(c, -2.168695210e-5f, 4.413376155e-4f, -4.204568453e-3f, 2.520827577e-2f,
                       -1.084186062e-1f, -6.332198381e-1f, -1.129578471f, 1.880436757e-4f));
  return a < 1.f ? small : (x < 0.f ? -large : large);
}

// x less the nearest multiple of pi/2, reduced in double: good to 1e-10 while |x| < 6e6; `quadrant`
// is that multiple.
GD_INLINE F reduce_half_pi(F x, I& quadrant) {
  const D d = __builtin_convertvector(x, D);
  quadrant = to_i(round_small(x * 0.636619772f));
  const D n = __builtin_convertvector(quadrant, D);
  return __builtin_convertvector(d - n * 1.5707963267948966, F);
}
GD_INLINE F sin_quadrant(F r, I quadrant) {
  const F z = r * r;
  const F s = fma(r * z, poly(z, -1.951408194e-4f, 8.332154714e-3f, -1.666665524e-1f), r);
  const F c =
      fma(z * z, poly(z, 2.443484118e-5f, -1.388733741e-3f, 4.166664556e-2f), 1.f - .5f * z);
  const F y = (quadrant & 1) != 0 ? c : s;
  return (quadrant & 2) != 0 ? -y : y;
}
GD_NOINLINE inline void sin_far(float* x, bool cosine) {
  for (int l = 0; l < W; ++l) x[l] = cosine ? __builtin_cosf(x[l]) : __builtin_sinf(x[l]);
}
GD_INLINE F sin_or_cos(F x, bool cosine) {
  if (any(!(v_abs(x) < 6e6f))) {
    float lanes[W];
    store(lanes, x, Full{});
    sin_far(lanes, cosine);
    return load(lanes, Full{});
  }
  I quadrant;
  const F r = reduce_half_pi(x, quadrant);
  return sin_quadrant(r, cosine ? quadrant + 1 : quadrant);
}
GD_INLINE F v_sin(F x) { return sin_or_cos(x, false); }
GD_INLINE F v_cos(F x) { return sin_or_cos(x, true); }

// Whole powers 2 and 3 are products; anything else is left to the C library, lane by lane.
GD_INLINE F v_pow(F x, F y) {
  const float first = y[0];
  bool equal = first == 2.f || first == 3.f;
  for (int l = 1; l < W; ++l) equal = equal && y[l] == first;
  if (equal) return first == 2.f ? x * x : x * x * x;
  for (int l = 0; l < W; ++l) x[l] = __builtin_powf(x[l], y[l]);
  return x;
}

}  // namespace gd
