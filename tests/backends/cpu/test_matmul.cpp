// Every matrix product against a double reference, at awkward sizes.
#include "check.hpp"
#include "matmul_batched.hpp"
#include "matmul_experts.hpp"

using namespace check;
using gd::F;
using gd::Team;

template <class T> static Buffer<T> packed(const Buffer<T>& w, i64 n, i64 k) {
  Buffer<T> p(gd::packed_bytes<T>(n, k) / i64(sizeof(T)));
  gd::pack(w.get(), p.get(), n, k);
  return p;
}
template <class T>
static double dot(const Buffer<T>& x, i64 at, const Buffer<T>& w, i64 w_at, i64 k) {
  double sum = 0;
  for (i64 i = 0; i < k; ++i) sum += value(x[at + i]) * value(w[w_at + i]);
  return sum;
}

template <class T> static void test_one(int threads, i64 rows, i64 n, i64 k, i64 gap) {
  const auto x = random<T>((rows - 1) * (k + gap) + k);
  const auto w = random<T>(n * k);
  const auto p = packed(w, n, k);
  auto y = filled<T>(rows * n, 99);
  const Scratch scratch(gd::matmul_scratch(rows, n, k, 1, threads));
  gd::run_team(threads, [&](const Team& team) {
    const T* const weights[1] = {p.get()};
    gd::matmul<1>(
        team, x.get(), k + gap, weights, rows, n, k, scratch.p,
        [&](i64 r, i64 c, auto l, F sum) { gd::store(y.get() + r * n + c, sum + 1.f, l); });
  });
  std::vector<double> want;
  for (i64 r = 0; r < rows; ++r)
    for (i64 c = 0; c < n; ++c) want.push_back(1 + dot(x, r * (k + gap), w, c * k, k));
  close(y, want, tolerance<T>, "matmul", rows, n, k);
}

template <class T> static void test_two(int threads, i64 rows, i64 n, i64 k) {
  const auto x = random<T>(rows * k), a = random<T>(n * k), b = random<T>(n * k);
  const auto pa = packed(a, n, k), pb = packed(b, n, k);
  auto y = filled<T>(rows * n, 99);
  const Scratch scratch(gd::matmul_scratch(rows, n, k, 2, threads));
  gd::run_team(threads, [&](const Team& team) {
    const T* const weights[2] = {pa.get(), pb.get()};
    gd::matmul<2>(
        team, x.get(), k, weights, rows, n, k, scratch.p,
        [&](i64 r, i64 c, auto l, F u, F v) { gd::store(y.get() + r * n + c, u - 2.f * v, l); });
  });
  std::vector<double> want;
  for (i64 r = 0; r < rows; ++r)
    for (i64 c = 0; c < n; ++c)
      want.push_back(dot(x, r * k, a, c * k, k) - 2 * dot(x, r * k, b, c * k, k));
  close(y, want, 2 * tolerance<T>, "matmul of two", rows, n, k);
}

template <class T> static void test_embedding(int threads, i64 rows, i64 dim) {
  const auto table = random<T>(rows * dim);
  const auto p = packed(table, rows, dim);
  const i64 count = 5;
  const auto id = ids(count, rows);
  auto from_packed = filled<T>(count * dim, 99), from_plain = filled<T>(count * dim, 99);
  gd::run_team(threads, [&](const Team& team) {
    gd::embedding(team, id.get(), count, p.get(), rows, dim, from_packed.get(), dim);
    gd::embedding_plain(team, id.get(), count, table.get(), rows, dim, from_plain.get(), dim);
  });
  std::vector<double> want;
  for (i64 i = 0; i < count * dim; ++i) want.push_back(value(table[id[i / dim] * dim + i % dim]));
  equal(from_packed, want, "embedding", rows, dim);
  equal(from_plain, want, "embedding_plain", rows, dim);
}

// `turned` bits: a, b and out are stored transposed.
template <class T> static void test_batched(int threads, i64 m, i64 n, i64 k, int turned) {
  const i64 b0 = 2, b1 = 1, b2 = 3;
  const auto a = random<T>(b0 * b2 * m * k),
             b = random<T>(b2 * k * n);  // b is shared by the first batch dimension
  auto out = filled<T>(b0 * b2 * m * n, 99);
  gd::BatchedMatmul<T> p = {a.get(),
                            b.get(),
                            out.get(),
                            {b0, b1, b2},
                            m,
                            n,
                            k,
                            {b2 * m * k, 0, m * k, k, 1},
                            {0, 0, k * n, n, 1},
                            {b2 * m * n, 0, m * n, n, 1}};
  const auto turn = [](i64(&stride)[5], i64 rows) {
    stride[3] = 1;
    stride[4] = rows;
  };
  if (turned & 1) turn(p.a_stride, m);
  if (turned & 2) turn(p.b_stride, k);
  if (turned & 4) turn(p.out_stride, m);
  gd::run_team(threads, [&](const Team& team) {
    gd::matmul_batched(team, p, [](F sum) { return sum * .5f; });
  });
  std::vector<double> want(size_t(out.n));
  for (i64 i = 0; i < out.n; ++i) {
    const i64 c = i % n, r = i / n % m, z = i / n / m % b2, o = i / n / m / b2;
    double sum = 0;
    for (i64 j = 0; j < k; ++j)
      sum +=
          value(a[o * p.a_stride[0] + z * p.a_stride[2] + r * p.a_stride[3] + j * p.a_stride[4]]) *
          value(b[z * p.b_stride[2] + j * p.b_stride[3] + c * p.b_stride[4]]);
    want[size_t(o * p.out_stride[0] + z * p.out_stride[2] + r * p.out_stride[3] +
                c * p.out_stride[4])] = sum / 2;
  }
  close(out, want, tolerance<T>, "matmul_batched", m, n, k);
}

template <class T>
static void test_experts(int threads, i64 rows, i64 experts, i64 n, i64 k, i64 shared = 1) {
  const i64 x_rows = (rows + shared - 1) / shared, size = gd::packed_bytes<T>(n, k) / i64(sizeof(T));
  const auto x = random<T>(x_rows * k), w = random<T>(experts * n * k);
  Buffer<T> p(experts * size);
  for (i64 e = 0; e < experts; ++e) gd::pack(w.get() + e * n * k, p.get() + e * size, n, k);
  auto id = ids(rows, experts, -1);  // -1: no expert, zeros
  auto y = filled<T>(rows * n, 99);
  const Scratch scratch(gd::expert_scratch(rows, experts, k, threads));
  const gd::ExpertLinear<T> call = {x.get(), k, shared, p.get(), id.get(), rows, experts, n, k};
  gd::run_team(threads, [&](const Team& team) {
    gd::expert_linear(team, call, scratch.p, [&](i64 r, i64 c, auto l, F sum) {
      gd::store(y.get() + r * n + c, sum, l);
    });
  });
  std::vector<double> want;
  for (i64 r = 0; r < rows; ++r)
    for (i64 c = 0; c < n; ++c)
      want.push_back(id[r] < 0 ? 0 : dot(x, r / shared * k, w, (id[r] * n + c) * k, k));
  close(y, want, tolerance<T>, "expert_linear", rows, n, k);
  auto plain = filled<T>(rows * n, 99);
  const gd::ExpertLinear<T> same = {x.get(), k, shared, w.get(), id.get(), rows, experts, n, k};
  gd::run_team(threads, [&](const Team& team) {
    gd::expert_linear_plain(team, same, [&](i64 r, i64 c, auto l, F sum) {
      gd::store(plain.get() + r * n + c, sum, l);
    });
  });
  close(plain, want, tolerance<T>, "expert_linear_plain", rows, n, k);
}

template <class T> static void test_all(int threads) {
  const i64 sizes[][3] = {
      {1, 1, 1},     {1, 17, 33},   {1, 128, 64},   {2, 40, 31},    {3, 16, 64},  {4, 65, 5},
      {5, 129, 7},   {6, 33, 1025}, {7, 64, 511},   {8, 3, 4000},   {12, 5, 3},   {13, 1, 1},
      {13, 257, 65}, {17, 70, 300}, {31, 20, 129},  {32, 81, 64},   {33, 90, 130}, {49, 7, 9},
      {100, 130, 259}, {481, 31, 300}, {500, 140, 33}, {975, 17, 5}, {35, 310, 527},
      {38, 20, 1025}};
  for (const auto& s : sizes) test_one<T>(threads, s[0], s[1], s[2], s[0] % 3);
  for (const auto& s : sizes)
    if (s[0] < 200) test_two<T>(threads, s[0], s[1], s[2]);
  for (i64 dim : {1, 2, 7, 64, 129}) test_embedding<T>(threads, 3 * gd::NB - 5, dim);
  for (int turned = 0; turned < 8; ++turned) {
    test_batched<T>(threads, 1, 1, 1, turned);
    test_batched<T>(threads, 1, 37, 130, turned);
    test_batched<T>(threads, 51, 19, 7, turned);
  }
  test_experts<T>(threads, 1, 2, 5, 9);
  test_experts<T>(threads, 9, 3, 70, 33);
  test_experts<T>(threads, 40, 4, 17, 64);
  test_experts<T>(threads, 2, 8, 130, 513, 2);
  test_experts<T>(threads, 90, 3, 140, 300, 3);
  test_experts<T>(threads, 700, 1, 33, 31, 2);
  test_experts<T>(threads, 110, 1, 20, 530);
}

int main() {
  for (int threads : {1, 2, 3}) {
    test_all<float>(threads);
    test_all<bf16>(threads);
  }
  return finish("matmul");
}
