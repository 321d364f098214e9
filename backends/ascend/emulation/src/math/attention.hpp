// Attention of one sequence in floats; who calls says where keys and values lie and what is hidden.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>
#include "number.hpp"

namespace emulation {

struct Heads {
  int64_t query, kv, dim, value_dim;
  float scale;
};

// Rows of queries, one after another, that look at the same keys.
struct Span {
  int64_t first, queries, keys;
};

inline void softmax(float* x, int64_t n) {
  float top = x[0], sum = 0;
  for (int64_t i = 1; i < n; ++i) top = std::max(top, x[i]);
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

// What the heads of queries that share one head of keys need.
struct Scratch {
  std::unique_ptr<float[]> keys, values;
  std::vector<float> scores;

  Scratch(const Heads& heads, int64_t n)
      : keys(new float[size_t(n * heads.dim)]),
        values(new float[size_t(n * heads.value_dim)]),
        scores(size_t(n)) {}
};

// `hide(row, head, keys, scores)` changes the scores of one query and returns how many of the keys,
// from the first on, it sees; `row` counts from the span's first.
template <class Hide>
void attend_head(const Heads& heads, const Span& span, int64_t head, const float* q, Hide hide,
                 Scratch& s, float* out) {
  for (int64_t row = 0; row < span.queries; ++row) {
    const int64_t place = (span.first + row) * heads.query + head;
    for (int64_t key = 0; key < span.keys; ++key)
      s.scores[size_t(key)] =
          heads.scale * dot(q + place * heads.dim, s.keys.get() + key * heads.dim, heads.dim);
    const int64_t seen = hide(row, head, span.keys, s.scores.data());
    float* sums = out + place * heads.value_dim;
    std::fill_n(sums, heads.value_dim, 0.f);
    if (seen > 0) softmax(s.scores.data(), seen);
    for (int64_t key = 0; key < seen; ++key)
      add_scaled(s.scores[size_t(key)], s.values.get() + key * heads.value_dim, sums,
                 heads.value_dim);
  }
}

// `fetch(span, kv_head, keys, values)` widens the keys [keys, dim] and values [keys, value_dim].
template <class Fetch, class Hide>
void attend(const Heads& heads, const std::vector<Span>& spans, const float* q, Fetch fetch,
            Hide hide, float* out) {
  const auto units = int64_t(spans.size()) * heads.kv;
  int64_t work = 0;
  for (const Span& span : spans) work += span.queries * span.keys * heads.query * heads.dim;
#pragma omp parallel for schedule(dynamic) if (work > 100000)
  for (int64_t unit = 0; unit < units; ++unit) {
    const auto index = size_t(unit / heads.kv);
    const Span& span = spans[index];
    const int64_t kv = unit % heads.kv, group = heads.query / heads.kv;
    if (span.queries == 0) continue;
    Scratch scratch(heads, std::max<int64_t>(span.keys, 1));
    fetch(index, kv, scratch.keys.get(), scratch.values.get());
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
      attend_head(heads, span, head, q, [&](int64_t row, int64_t h, int64_t n, float* scores) {
        return hide(index, row, h, n, scores);
      }, scratch, out);
  }
}

}  // namespace emulation
