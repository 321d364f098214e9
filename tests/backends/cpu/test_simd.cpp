// Loads and stores at every length, conversions, reductions and the elementary functions.
#include "check.hpp"

using namespace check;
using gd::F;
using gd::I;
using gd::W;

constexpr double inf = HUGE_VAL;

static void test_lanes() {
  for (i64 n = 1; n <= 3 * W + 1; ++n) {
    const auto x = random<float>(n, 100);
    const auto h = random<bf16>(n);
    const auto i = ids(n, 1000);
    Buffer<uint8_t> flags(n), flags_out(n);
    Buffer<float> y(n), from_half(n), kept(n);
    Buffer<bf16> h_out(n);
    Buffer<int32_t> i_out(n);
    for (i64 j = 0; j < n; ++j) flags[j] = uint8_t(below(2));
    float total = 0, top = -1e30f, least = 1e30f;
    gd::for_lanes(n, [&](i64 at, auto l) {
      const F v = gd::load(x.get() + at, l);
      gd::store(y.get() + at, v, l);
      gd::store(h_out.get() + at, v, l);
      gd::store(from_half.get() + at, gd::load(h.get() + at, l), l);
      gd::store(i_out.get() + at, gd::load(i.get() + at, l) + 1, l);
      const I mask = gd::load(flags.get() + at, l);
      gd::store(flags_out.get() + at, ~mask, l);
      gd::store(kept.get() + at, mask ? v : gd::splat(0), l);
      total += gd::sum(gd::keep(v, l, 0));
      top = fmaxf(top, gd::max_of(gd::keep(v, l, -1e30f)));
      least = fminf(least, gd::min_of(gd::keep(v, l, 1e30f)));
    });
    double want_total = 0, want_top = -1e30, want_least = 1e30;
    for (i64 j = 0; j < n; ++j) {
      expect(y[j] == x[j], "store float", n, j);
      expect(h_out[j].bits == gd::to_bf16(x[j]).bits, "store bf16", n, j);
      expect(from_half[j] == gd::to_float(h[j]), "load bf16", n, j);
      expect(i_out[j] == i[j] + 1, "int", n, j);
      expect(flags_out[j] == !flags[j], "bool", n, j);
      expect(kept[j] == (flags[j] ? x[j] : 0), "select", n, j);
      want_total += x[j];
      want_top = fmax(want_top, x[j]);
      want_least = fmin(want_least, x[j]);
    }
    expect(fabs(total - want_total) < 1e-2, "sum", n);
    expect(top == want_top && least == want_least, "max and min", n);
  }
}

static void test_rounding() {
  for (int i = 0; i < 200000; ++i) {
    const float f = gd::bits_to_float(uint32_t(next()));
    const F rounded = gd::round_to_bf16(gd::splat(f));
    const float scalar = gd::to_float(gd::to_bf16(f));
    if (f != f) {
      expect(rounded[0] != rounded[0] && scalar != scalar, "NaN stays NaN");
      continue;
    }
    expect(rounded[0] == scalar, "vector and scalar rounding agree");
    const uint32_t low = gd::float_to_bits(f) & 0xffff0000u;
    const double down = gd::bits_to_float(low), up = gd::bits_to_float(low + 0x10000);
    if (isinf(up) || isinf(down)) continue;
    const double nearest =
        fabs(f - down) < fabs(up - f) || (fabs(f - down) == fabs(up - f) && (low >> 16) % 2 == 0)
            ? down
            : up;
    expect(scalar == nearest, "nearest, ties to even");
  }
}

// Relative error against libm in double, over a range and at odd points.
template <class Vector, class Scalar>
static void test_function(const char* name, double low, double high, double bound, Vector vector,
                          Scalar scalar) {
  for (int i = 0; i < 200000; ++i) {
    const float x = float(low + (high - low) * (i + .5 + .5 * uniform()) / 200000);
    const double got = vector(gd::splat(x))[W - 1], want = scalar(double(x));
    if (!(fabs(got - want) <= bound * fabs(want) + 1e-38)) return fail(name, i, 0, 0, got, want);
  }
}
template <class Vector, class Scalar>
static void test_points(const char* name, Vector vector, Scalar scalar) {
  for (double x : {0.0, -0.0, 1.0, -1.0, .5, 1e-30, -1e-30, 1e-40, 3e38, -3e38, 88.0, -88.0, 104.0,
                   -104.0, inf, -inf, double(NAN)}) {
    const double got = vector(gd::splat(float(x)))[0], want = float(scalar(double(float(x))));
    if (want != want ? got == got : !(got == want || fabs(got - want) <= 2e-6 * fabs(want) + 2e-38))
      fail(name, 0, 0, 0, got, want);
  }
}
template <class Vector, class Scalar>
static void test_both(const char* name, double low, double high, double bound, Vector vector,
                      Scalar scalar) {
  test_function(name, low, high, bound, vector, scalar);
  test_points(name, vector, scalar);
}

static void test_functions() {
  test_both(
      "exp", -87, 88.5, 1e-6, [](F x) { return gd::v_exp(x); }, [](double x) { return exp(x); });
  test_function(
      "2 to a small power", -125, 12, 1e-6, [](F x) { return gd::exp2_small(x); },
      [](double x) { return exp2(x); });
  expect(gd::exp2_small(gd::splat(-HUGE_VALF))[0] == 0, "2 to the power of -inf");
  expect(gd::exp2_small(gd::splat(-127))[0] == 0, "2 to the power of -127");
  expect(gd::exp2_small(gd::splat(0))[0] == 1, "2 to the power of 0");
  for (const uint32_t bits : {0x7fc00000u, 0x7fffffffu, 0xffffffffu}) {
    const float none = gd::exp2_small(gd::splat(gd::bits_to_float(bits)))[0];
    expect(none != none, "2 to the power of NaN");
  }
  test_both(
      "log", 1e-6, 4, 1e-6, [](F x) { return gd::v_log(x); }, [](double x) { return log(x); });
  test_function(
      "log", 4, 1e30, 1e-6, [](F x) { return gd::v_log(x); }, [](double x) { return log(x); });
  test_both(
      "tanh", -12, 12, 1e-6, [](F x) { return gd::v_tanh(x); }, [](double x) { return tanh(x); });
  test_both("erf", -5, 5, 1e-6, [](F x) { return gd::v_erf(x); }, [](double x) { return erf(x); });
  test_both(
      "sigmoid", -80, 80, 1e-6, [](F x) { return gd::v_sigmoid(x); },
      [](double x) { return 1 / (1 + exp(-x)); });
  test_both(
      "sqrt", 0, 1e10, 2e-7, [](F x) { return gd::v_sqrt(x); }, [](double x) { return sqrt(x); });
  test_both(
      "rsqrt", 1e-8, 1e10, 3e-7, [](F x) { return gd::v_rsqrt(x); },
      [](double x) { return 1 / sqrt(x); });
  test_both(
      "floor", -1e5, 1e5, 0, [](F x) { return gd::v_floor(x); }, [](double x) { return floor(x); });
  test_function(
      "pow", 0, 50, 1e-6, [](F x) { return gd::v_pow(x, gd::splat(1.7f)); },
      [](double x) { return pow(x, double(1.7f)); });
  test_both(
      "cube", -50, 50, 1e-6, [](F x) { return gd::v_pow(x, gd::splat(3)); },
      [](double x) { return pow(x, 3.0); });
  for (int i = 0; i < 200000;
       ++i) {  // absolute: near a zero the relative error of any f32 function is large
    const float x = float(uniform() * (i % 2 ? 1e5 : 10.0));
    const double s = gd::v_sin(gd::splat(x))[0], c = gd::v_cos(gd::splat(x))[W - 1];
    if (fabs(s - sin(double(x))) > 1.5e-7) return fail("sin", i, 0, 0, s, sin(double(x)));
    if (fabs(c - cos(double(x))) > 1.5e-7) return fail("cos", i, 0, 0, c, cos(double(x)));
  }
  test_points("sin", [](F x) { return gd::v_sin(x); }, [](double x) { return sin(x); });
  test_points("cos", [](F x) { return gd::v_cos(x); }, [](double x) { return cos(x); });
}

static void test_extremes() {
  const F nan = gd::splat(NAN), one = gd::splat(1);
  for (const F v :
       {gd::v_max(nan, one), gd::v_max(one, nan), gd::v_min(nan, one), gd::v_min(one, nan)})
    expect(v[0] != v[0], "NaN wins");
  expect(gd::max_of(nan) != gd::max_of(nan), "NaN wins a reduction");
  expect(gd::v_max(gd::splat_i(-3), gd::splat_i(2))[0] == 2 &&
             gd::v_min(gd::splat_i(-3), gd::splat_i(2))[0] == -3,
         "int max, min");
  expect(gd::v_abs(gd::splat_i(-3))[0] == 3 && gd::v_abs(gd::splat(-0.f))[0] == 0, "abs");
  expect(gd::to_i(gd::splat(-2.9f))[0] == -2 && gd::to_f(gd::splat_i(-7))[0] == -7,
         "conversions truncate");
  expect(gd::any(gd::lane_index() == W - 1) && !gd::any(gd::lane_index() == W), "any");
}

int main() {
  test_lanes();
  test_rounding();
  test_functions();
  test_extremes();
  return finish("simd");
}
