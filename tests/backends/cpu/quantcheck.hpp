// Products with quantised weights against a double reference on the dequantised weights.
#pragma once
#include "check.hpp"
#include "matmul_quant.hpp"

namespace check {

using gd::F;
using gd::f16;
using gd::Quant;
using gd::Team;

// Numbers of a format, and the weight that they are.
template <class Q> struct Weight {
  i64 n, k;
  Buffer<int8_t> values;
  Buffer<float> scales, offsets;
  Buffer<Q> packed;

  Weight(i64 rows, i64 columns)
      : n(rows), k(columns), values(n * k), scales(n * groups()),
        offsets(Q::offset ? n * groups() : 0), packed(gd::quant_bytes<Q>(n, k)) {
    const int low = Q::bits == 4 && Q::offset ? 0 : -(1 << (Q::bits - 1));
    for (i64 i = 0; i < values.n; ++i) values[i] = int8_t(low + below(1 << Q::bits));
    fill(scales, 1. / (1 << Q::bits));
    fill(offsets, 1);
    gd::pack_quant(values.get(), scales.get(), offsets.get(), packed.get(), n, k);
  }
  i64 groups() const { return Q::group == 0 ? 1 : k / Q::group; }
  static void fill(const Buffer<float>& to, double size) {
    for (i64 i = 0; i < to.n; ++i) {
      typename Q::scale stored;
      gd::put(&stored, float(int(uniform() * 1024) * size / 1024));  // a half holds it
      to[i] = gd::to_float(stored);
    }
  }
  double at(i64 row, i64 column) const {
    const i64 g = row * groups() + (Q::group == 0 ? 0 : column / Q::group);
    return values[row * k + column] * double(scales[g]) + (Q::offset ? double(offsets[g]) : 0);
  }
};

template <class T> std::vector<double> values_of(const Buffer<T>& x) {
  std::vector<double> to;
  for (i64 i = 0; i < x.n; ++i) to.push_back(value(x[i]));
  return to;
}

// The step to which few rows are rounded in a block whose largest number is `top`: beside weights of
// 4 bits to int8, beside those of 8 bits to 16 bits.
template <class Q> float row_step(float top) {
  return Q::bits == 4 ? top / 127 : ldexpf(1, ilogbf(top * (1 + 0x1p-16f)) - 14);
}
// x as few rows of it are multiplied: rounded where the format says so.
template <class Q, class T> std::vector<double> rounded(const Buffer<T>& x, i64 k) {
  std::vector<double> to = values_of(x);
  for (i64 begin = 0; Q::int_act && begin < x.n;) {
    const i64 end = gd::least(begin - begin % k + gd::least(begin % k + Q::block, k), x.n);
    float top = 0;
    for (i64 i = begin; i < end; ++i) top = fmaxf(top, fabsf(gd::to_float(x[i])));
    const float step = row_step<Q>(top);
    const float inverse = top == 0 ? 0 : Q::bits == 4 ? 127 / top : 1 / step;
    // By the kernels' own rounding: at a tie it matters whether the product is rounded before it.
    for (i64 i = begin; i < end; ++i)
      to[size_t(i)] = gd::round_small(gd::splat(gd::to_float(x[i])) * inverse)[0] * double(step);
    begin = end;
  }
  return to;
}

template <class Q>
double dot(const std::vector<double>& x, i64 row, const Weight<Q>& w, i64 column) {
  double sum = 0;
  for (i64 i = 0; i < w.k; ++i) sum += x[size_t(row * w.k + i)] * w.at(column, i);
  return sum;
}

// Whether rows are multiplied as they are, whatever the format says.
template <class Q> bool keeps_rows(i64 rows) {
#if defined(GD_MANY_BYTES)
  if (Q::bits == 4) return false;
#endif
  return rows > gd::product::few_rows;
}

// Two weights at once.  The bound of int8 rows against exact ones is what rounding x can do: half a
// step of 1/127 of a block's largest number, in a sum where signs are random.  Rows of 16 bits are
// as good as exact.
template <class Q, class T> void test_matmul(int threads, i64 rows, i64 n, i64 k) {
  const auto x = random<T>(rows * k);
  const Weight<Q> w[2] = {{n, k}, {n, k}};
  const Buffer<T> y[2] = {filled<T>(rows * n, 99), filled<T>(rows * n, 99)};
  const Scratch scratch(gd::quant_scratch(rows, n, k, 2, threads));
  gd::run_team(threads, [&](const Team& team) {
    const Q* const weights[2] = {w[0].packed.get(), w[1].packed.get()};
    gd::matmul<2>(team, x.get(), k, weights, rows, n, k, scratch.p,
                  [&](i64 r, i64 c, auto l, F u, F v) {
                    gd::store(y[0].get() + r * n + c, u, l);
                    gd::store(y[1].get() + r * n + c, v, l);
                  });
  });
  const std::vector<double> given = values_of(x), few = rounded<Q>(x, k);
  for (int i = 0; i < 2; ++i) {
    std::vector<double> want, exact;
    for (i64 r = 0; r < rows; ++r)
      for (i64 c = 0; c < n; ++c) {
        exact.push_back(dot(given, r, w[i], c));
        want.push_back(keeps_rows<Q>(rows) ? exact.back() : dot(few, r, w[i], c));
      }
    const i64 name = 1000 * Q::bits + Q::group;
    const double bound = 2 * tolerance<T>;  // the blocked path may round weights to bf16
    const double most_exact = fmax(bound, Q::int_act ? 2e-4 : 0);
    close(y[i], want, bound, "quant matmul", name, rows, n * 10000 + k);
    close(y[i], exact, Q::int_act && Q::bits == 4 ? .03 : most_exact, "rounded rows", name, rows, n * 10000 + k);
  }
}

template <class Q, class T> void test_embedding(int threads, i64 rows, i64 dim) {
  const Weight<Q> table(rows, dim);
  const i64 count = 5;
  auto id = ids(count, rows);
  id[3] = int32_t(rows);  // none: zeros
  auto out = filled<T>(count * dim, 99);
  gd::run_team(threads, [&](const Team& team) {
    gd::embedding(team, id.get(), count, table.packed.get(), rows, dim, out.get(), dim);
  });
  std::vector<double> want;
  for (i64 i = 0; i < count * dim; ++i) {
    T stored;
    set(stored, i / dim == 3 ? 0 : table.at(id[i / dim], i % dim));
    want.push_back(value(stored));
  }
  equal(out, want, "quant embedding", Q::bits, rows, dim);
}

// A number far above the others of its block, and a block of zeros, are no worse.
template <class Q, class T> void test_uneven_rows() {
  const i64 k = 256, n = gd::NB;
  auto x = random<T>(k, 1e-3);
  for (i64 i = 32; i < 64; ++i) set(x[i], 0);
  set(x[70], 1e4);
  const Weight<Q> w(n, k);
  auto y = filled<float>(n, 99);
  const Scratch scratch(gd::quant_scratch(1, n, k, 1, 1));
  gd::run_team(1, [&](const Team& team) {
    const Q* const weights[1] = {w.packed.get()};
    gd::matmul<1>(team, x.get(), k, weights, 1, n, k, scratch.p,
                  [&](i64, i64 c, auto l, F u) { gd::store(y.get() + c, u, l); });
  });
  const std::vector<double> given = values_of(x);
  std::vector<double> want;
  for (i64 c = 0; c < n; ++c) want.push_back(dot(given, 0, w, c));
  close(y, want, 3e-4, "uneven rows", Q::bits, Q::group);
}

template <class Q, class T> void test_format() {
  const i64 step = Q::group == 0 ? 37 : Q::group, wide = gd::NB * 5 + 3;
  // Threads share the rows that they prepare where those are large.
  const i64 cases[][4] = {{1, 1, wide, 3 * step},  {2, 2, wide, 5 * step},
                          {2, 5, 7, 9 * step},     {3, 12, gd::NB + 1, 45 * step},
                          {2, 13, wide, 7 * step}, {2, 33, wide, 7 * step},
                          {1, 64, 19, 2 * step}};
  for (const auto& c : cases) test_matmul<Q, T>(int(c[0]), c[1], c[2], c[3]);
  // Several chunks of rows, and pieces of k.
  if (Q::int_act && Q::bits == 4)
    for (int threads : {1, 2}) test_matmul<Q, T>(threads, 531, 11, 640 / step * step);
  test_embedding<Q, T>(2, 3 * gd::NB - 5, 3 * step);
  if (!Q::int_act) test_uneven_rows<Q, T>();
}
template <int Bits, int Group, bool Offset, class Scale, class T> void test_both() {
  test_format<Quant<Bits, Group, Offset, Scale, false>, T>();
  test_format<Quant<Bits, Group, Offset, Scale, true>, T>();
}

}  // namespace check
