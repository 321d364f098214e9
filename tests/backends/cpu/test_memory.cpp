// The team and its barrier, workspace placement, the KV cache, rope, selection and copies.
#include <string.h>
#include <chrono>
#include <thread>
#include "check.hpp"
#include "kv.hpp"
#include "misc.hpp"
#include "workspace.hpp"

using namespace check;
using gd::Team;

static void test_team() {
  for (int threads : {1, 2, 3, 5}) {
    int count = 0, wrong = 0;
    std::vector<int> turn(16, 0);
    gd::run_team(threads, [&](const Team& team) {
      if (team.id == 0) count = team.count;
      for (int round = 1; round <= 200; ++round) {
        turn[size_t(team.id)] = round;
        team.barrier();
        for (int t = 0; t < team.count; ++t)
          if (turn[size_t(t)] != round) __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
        team.barrier();
      }
    });
    expect(wrong == 0 && count >= 1 && count <= threads, "barrier", threads, count, wrong);
    for (i64 n : {0, 1, 2, 7, 100}) {
      i64 at = 0;
      for (int t = 0; t < threads; ++t) {
        const gd::Range r = Team{t, threads, nullptr}.share(n);
        expect(
            r.begin == at && r.end - r.begin >= n / threads && r.end - r.begin <= n / threads + 1,
            "share", n, t);
        at = r.end;
      }
      expect(at == n, "shares cover everything", n);
    }
  }
}

// Every item is taken once, also where some threads are late and where there are more threads than
// help each other.
static void test_divided_work() {
  constexpr i64 works = 12, items[] = {0, 1, 7, 64, 1000};
  std::vector<int> taken;
  const auto divide = [&](const Team& team) {
    for (i64 work = 0; work < works; ++work)
      team.divide(items[work % 5], 1 + work % 4, [&](gd::Range part) {
        for (i64 i = part.begin; i < part.end; ++i)
          __atomic_fetch_add(&taken[size_t(work * 1000 + i)], 1, __ATOMIC_RELAXED);
      });
  };
  const auto check_all = [&](int threads) {
    for (i64 work = 0; work < works; ++work)
      for (i64 i = 0; i < 1000; ++i)
        expect(taken[size_t(work * 1000 + i)] == (i < items[work % 5] ? 1 : 0), "taken once",
               threads, work, i);
  };
  for (int threads : {1, 2, 3, 5}) {
    taken.assign(size_t(works) * 1000, 0);
    gd::run_team(threads, [&](const Team& team) {
      if (team.id % 3 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      divide(team);
    });
    check_all(threads);
  }
  const int many = gd::most_helpers + 10;
  taken.assign(size_t(works) * 1000, 0);
  for (int id = 0; id < many; ++id) divide(Team{id, many, nullptr});
  check_all(many);
}

// The share of a thread that is late is done by another.
static void test_others_help() {
  bool late = true;
  i64 done[2] = {0, 0};
  gd::run_team(2, [&](const Team& team) {
    if (team.id == 1)
      while (__atomic_load_n(&late, __ATOMIC_RELAXED)) std::this_thread::yield();
    team.divide(100, 3, [&](gd::Range part) { done[team.id] += part.end - part.begin; });
    if (team.id == 0) __atomic_store_n(&late, false, __ATOMIC_RELAXED);
  });
  expect(done[0] == 100 && done[1] == 0, "helps", done[0], done[1]);
}

static void test_workspace() {
  for (int trial = 0; trial < 300; ++trial) {
    const int n = int(below(40));
    std::vector<gd::Live> live;
    for (int i = 0; i < n; ++i) {
      const i64 start = below(30);
      live.push_back({below(5) ? below(5000) : 0, start, start + below(8)});
    }
    std::vector<i64> at(size_t(n) + 1), again(size_t(n) + 1);
    const i64 peak = gd::place(live.data(), n, at.data());
    expect(peak == gd::place(live.data(), n, again.data()) && at == again,
           "placement is deterministic");
    expect(peak >= gd::lower_bound(live.data(), n), "peak is at least the bound");
    for (size_t i = 0; i < size_t(n); ++i) {
      expect(at[i] % 64 == 0 && at[i] >= 0 && at[i] + live[i].bytes <= peak, "aligned and inside",
             i64(i));
      for (size_t j = 0; j < i; ++j)
        if (live[i].start <= live[j].end && live[j].start <= live[i].end)
          expect(at[i] + live[i].bytes <= at[j] || at[j] + live[j].bytes <= at[i] ||
                     !live[i].bytes || !live[j].bytes,
                 "living buffers are apart");
    }
  }
  const gd::Live chain[] = {{640, 0, 1}, {640, 1, 2}, {640, 2, 3}, {640, 3, 4}};
  i64 at[4];
  expect(gd::place(chain, 4, at) == 1280 && gd::lower_bound(chain, 4) == 1280,
         "a chain needs two buffers");
}

template <class T> static void test_rope(int threads, i64 dim, i64 rotary, bool interleaved) {
  const i64 batch = 2, tokens = 3, heads = 4, kv_heads = 2, slots = 9, half = rotary / 2;
  const auto q = random<T>(batch * tokens * heads * dim),
             k = random<T>(batch * tokens * kv_heads * dim),
             v = random<T>(batch * tokens * kv_heads * dim);
  const auto cos = random<float>(batch * tokens * half), sin = random<float>(batch * tokens * half);
  Buffer<int32_t> positions(batch * tokens);
  for (i64 i = 0; i < positions.n; ++i) positions[i] = int32_t(i == 1 ? -1 : 2 + i % tokens);
  auto q_out = filled<T>(q.n, 9), k_out = filled<T>(k.n, 9),
       appended = filled<T>(batch * slots * kv_heads * dim, 9);
  auto k_cache = filled<T>(appended.n, 9), v_cache = filled<T>(appended.n, 9);
  const auto view = [&](auto* p, i64 rows, i64 h) {
    return gd::View4<std::remove_pointer_t<decltype(p)>>{p, {rows * h * dim, h * dim, dim}};
  };
  const auto cache = [&](T* p) {
    return gd::Cache<T>{
        p, {slots * kv_heads * dim, dim, slots * dim}, slots, nullptr, 0, 0, false};
  };  // [b, g, s, d]
  const auto constant = [](const T* p) { return p; };
  const gd::Angles angles = {cos.get(), sin.get(), {tokens * half, half}};
  const gd::Positions at = {positions.get(), tokens, tokens};
  gd::run_team(threads, [&](const Team& team) {
    gd::rope_append(
        team, gd::RopeAppend<T>{
                  view(constant(q.get()), tokens, heads), view(constant(k.get()), tokens, kv_heads),
                  view(constant(v.get()), tokens, kv_heads), angles, at,
                  view(q_out.get(), tokens, heads), cache(k_cache.get()), cache(v_cache.get()),
                  batch, heads, kv_heads, dim, dim, rotary, interleaved},
        nullptr);
    gd::rope(team, view(constant(k.get()), tokens, kv_heads), angles,
             view(k_out.get(), tokens, kv_heads), batch, tokens, kv_heads, dim, rotary,
             interleaved);
    team.barrier();
    gd::kv_append(team, view(constant(k_out.get()), tokens, kv_heads), at,
                  cache(appended.get()), batch, kv_heads, dim);
  });
  const auto turned = [&](const Buffer<T>& x, i64 i) {
    const i64 d = i % dim, row = i / dim, token = row / (x.n / dim / batch / tokens);
    if (d >= rotary) return value(x[i]);
    const i64 pair = interleaved ? d / 2 : d % half;
    const bool second = interleaved ? d % 2 : d >= half;
    const i64 a = row * dim + (interleaved ? 2 * pair : pair),
              b = row * dim + (interleaved ? 2 * pair + 1 : pair + half);
    const double c = double(cos[token * half + pair]), s = double(sin[token * half + pair]);
    return second ? value(x[b]) * c + value(x[a]) * s : value(x[a]) * c - value(x[b]) * s;
  };
  std::vector<double> want_q, want_k(size_t(k_cache.n), 9.0), want_v(size_t(v_cache.n), 9.0);
  for (i64 i = 0; i < q.n; ++i) want_q.push_back(turned(q, i));
  for (i64 i = 0; i < k.n; ++i) {
    const i64 d = i % dim, g = i / dim % kv_heads, token = i / dim / kv_heads,
              slot = positions[token];
    if (slot < 0) continue;
    const size_t at = size_t(((token / tokens * kv_heads + g) * slots + slot) * dim + d);
    want_k[at] = turned(k, i);
    want_v[at] = value(v[i]);
  }
  close(q_out, want_q, tolerance<T>, "rope_append q", dim, rotary);
  close(k_cache, want_k, tolerance<T>, "rope_append k", dim, rotary);
  close(appended, want_k, tolerance<T>, "rope, kv_append", dim, rotary);
  equal(v_cache, want_v, "rope_append v", dim, rotary);
}

template <class T, class Weight>
static void test_norm_rope(int threads, i64 dim, i64 rotary, bool interleaved) {
  const i64 batch = 2, tokens = 3, heads = 4, kv_heads = 2, slots = 9, half = rotary / 2;
  const i64 width = heads + 2 * kv_heads;  // q, k and v of a token lie side by side
  const double eps = 0.01;
  const auto qkv = random<T>(batch * tokens * width * dim, 3);
  const auto q_weight = random<Weight>(dim), k_weight = random<Weight>(dim);
  const auto cos = random<float>(batch * tokens * half), sin = random<float>(batch * tokens * half);
  Buffer<int32_t> positions(batch * tokens);
  for (i64 i = 0; i < positions.n; ++i) positions[i] = int32_t(i == 4 ? -1 : 1 + i % tokens);
  auto q_out = filled<T>(batch * tokens * heads * dim, 9);
  auto k_cache = filled<T>(batch * slots * kv_heads * dim, 9), v_cache = filled<T>(k_cache.n, 9);
  const auto part = [&](i64 head) {
    return gd::View4<const T>{qkv.get() + head * dim, {tokens * width * dim, width * dim, dim}};
  };
  const auto cache = [&](T* p) {
    return gd::Cache<T>{
        p, {slots * kv_heads * dim, dim, slots * dim}, slots, nullptr, 0, 0, false};
  };
  const gd::RopeAppend<T> rope = {
      part(0), part(heads), part(heads + kv_heads), {cos.get(), sin.get(), {tokens * half, half}},
      {positions.get(), tokens, tokens}, {q_out.get(), {tokens * heads * dim, heads * dim, dim}},
      cache(k_cache.get()), cache(v_cache.get()), batch, heads, kv_heads, dim, dim, rotary,
      interleaved};
  gd::run_team(threads, [&](const Team& team) {
    gd::norm_rope_append(
        team, gd::NormRopeAppend<T, Weight>{rope, q_weight.get(), k_weight.get(), float(eps)},
        nullptr);
  });
  const auto row = [&](i64 token, i64 head, const Buffer<Weight>& weight) {
    std::vector<double> x, out;
    double squares = 0;
    for (i64 d = 0; d < dim; ++d) x.push_back(value(qkv[(token * width + head) * dim + d]));
    for (double e : x) squares += e * e;
    const double root = sqrt(squares / double(dim) + eps);
    for (i64 d = 0; d < dim; ++d) x[size_t(d)] *= value(weight[d]) / root;
    for (i64 d = 0; d < dim; ++d) {
      const i64 pair = interleaved ? d / 2 : d % half;
      const bool second = interleaved ? d % 2 : d >= half;
      const double a = x[size_t(interleaved ? 2 * pair : pair)];
      const double b = d < rotary ? x[size_t(interleaved ? 2 * pair + 1 : pair + half)] : 0;
      const double c = d < rotary ? double(cos[token * half + pair]) : 0;
      const double s = d < rotary ? double(sin[token * half + pair]) : 0;
      out.push_back(d >= rotary ? x[size_t(d)] : second ? b * c + a * s : a * c - b * s);
    }
    return out;
  };
  std::vector<double> want_q, want_k(size_t(k_cache.n), 9.0), want_v(size_t(v_cache.n), 9.0);
  for (i64 token = 0; token < batch * tokens; ++token) {
    for (i64 h = 0; h < heads; ++h)
      for (double e : row(token, h, q_weight)) want_q.push_back(e);
    for (i64 g = 0; positions[token] >= 0 && g < kv_heads; ++g) {
      const i64 at = ((token / tokens * kv_heads + g) * slots + positions[token]) * dim;
      const auto k = row(token, heads + g, k_weight);
      for (i64 d = 0; d < dim; ++d) {
        want_k[size_t(at + d)] = k[size_t(d)];
        want_v[size_t(at + d)] = value(qkv[(token * width + heads + kv_heads + g) * dim + d]);
      }
    }
  }
  close(q_out, want_q, tolerance<T>, "norm_rope_append q", dim, rotary);
  close(k_cache, want_k, tolerance<T>, "norm_rope_append k", dim, rotary);
  equal(v_cache, want_v, "norm_rope_append v", dim, rotary);
}

template <class T> static void test_selection(int threads, i64 n, i64 k) {
  const i64 rows = 5, stride = n + 3;
  auto x = random<T>(rows * stride);
  for (i64 i = 0; i < x.n; ++i) set(x[i], floor(value(x[i]) * 8));  // many ties
  if (n > 2) set(x[stride + 1], NAN);
  if (n > 2) set(x[2 * stride], -INFINITY);
  Buffer<int32_t> top(rows), indices(rows * k);
  Buffer<T> values(rows * k);
  gd::run_team(threads, [&](const Team& team) {
    gd::argmax(team, x.get(), rows, n, stride, top.get());
    gd::topk(team, x.get(), rows, n, stride, k, values.get(), indices.get());
  });
  for (i64 r = 0; r < rows; ++r) {
    std::vector<char> used(size_t(n), 0);
    for (i64 i = 0; i < k; ++i) {
      i64 best = -1;
      for (i64 j = 0; j < n; ++j) {
        const double v = value(x[r * stride + j]), b = best < 0 ? 0 : value(x[r * stride + best]);
        if (!used[size_t(j)] && (best < 0 || (v != v && b == b) || v > b)) best = j;
      }
      used[size_t(best)] = 1;
      expect(indices[r * k + i] == best, "topk index", r, i, n);
      expect(memcmp(&values[r * k + i], &x[r * stride + best], sizeof(T)) == 0, "topk value", r, i,
             n);
      if (i == 0) expect(top[r] == best, "argmax", r, top[r], best);
    }
  }
}

template <class E> static void test_copies(int threads) {
  const i64 sizes[6] = {2, 3, 1, 4, 2, 5};
  Buffer<E> from(240), turned(240), back(240), rows(5 * 7);
  for (i64 i = 0; i < 240; ++i) from[i] = E(i);
  gd::StridedCopy<E> there = {from.get(), turned.get(), 6, {}, {}, {}},
                     again = {turned.get(), back.get(), 6, {}, {}, {}};
  i64 plain = 240, reversed = 1;
  for (int d = 0; d < 6; ++d) {
    plain /= sizes[d];
    there.sizes[d] = again.sizes[d] = sizes[d];
    there.from_stride[d] = again.to_stride[d] = plain;
    there.to_stride[d] = again.from_stride[d] = reversed;
    reversed *= sizes[d];
  }
  const int32_t id[] = {3, -1, 0, 2, 4};
  E one = E(0);
  const gd::StridedCopy<E> scalar = {from.get() + 7, &one, 0, {}, {}, {}};
  gd::run_team(threads, [&](const Team& team) {
    gd::copy_strided(team, there);
    team.barrier();
    gd::copy_strided(team, again);
    gd::copy_strided(team, scalar);
    gd::gather_rows(team, from.get(), 10, 4, id, 5, 7, rows.get(), 7);
  });
  expect(memcmp(from.get(), back.get(), 240 * sizeof(E)) == 0, "copy_strided there and back");
  expect(turned[1] == from[120], "copy_strided transposes");
  expect(one == from[7], "copy_strided of a scalar");
  for (i64 i = 0; i < 35; ++i) {
    const bool there = id[i / 7] >= 0 && id[i / 7] < 4;
    expect(rows[i] == (there ? from[id[i / 7] * 10 + i % 7] : E(0)), "gather_rows", i);
  }
}

int main() {
  test_team();
  test_divided_work();
  test_others_help();
  test_workspace();
  for (int threads : {1, 2, 3}) {
    for (bool interleaved : {false, true}) {
      test_rope<float>(threads, 24, 24, interleaved);
      test_rope<bf16>(threads, 64, 64, interleaved);
      test_rope<bf16>(threads, 20, 6, interleaved);
      test_rope<float>(threads, 7, 2, interleaved);
      test_norm_rope<float, float>(threads, 24, 24, interleaved);
      test_norm_rope<bf16, bf16>(threads, 64, 64, interleaved);
      test_norm_rope<bf16, float>(threads, 20, 6, interleaved);
      test_norm_rope<float, float>(threads, 7, 2, interleaved);
    }
    for (i64 n : {1, 2, 40, 333}) {
      test_selection<float>(threads, n, gd::least(n, 7));
      test_selection<bf16>(threads, n, n);
    }
    test_copies<uint8_t>(threads);
    test_copies<uint16_t>(threads);
    test_copies<uint32_t>(threads);
  }
  return finish("memory");
}
