// Attention over a KV cache of any layout, for one new token and for whole prompts.
#pragma once
#include "attention_decode.hpp"
#include "attention_prefill.hpp"

namespace gd {

// `together`: the heads of the cache that heads_together gives, or more.
inline i64 attention_scratch(i64 tokens, i64 heads, i64 kv_heads, i64 dim, i64 value_dim,
                             i64 together, int threads) {
  const i64 group = heads / kv_heads, rows = tokens * group;
  if (rows <= attending::few_queries)
    return threads * attending::FewScratch::floats(rows, together, dim, value_dim) * 4;
  return threads * attending::ManyScratch::floats(group, dim, value_dim) * 4;
}

// All threads call it; it passes barriers, and other calls may use the scratch only behind a
// barrier.
template <class T, class K, class V>
void attention(const Team& team, const Attention<T, K, V>& a, char* scratch) {
  if (a.tokens * (a.heads / a.kv_heads) <= attending::few_queries)
    attending::few(team, a, scratch);
  else
    attending::many(team, a, scratch);
}

}  // namespace gd
