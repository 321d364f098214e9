// Attention over a KV cache of any layout, for one new token and for whole prompts.
#pragma once
#include "attention_decode.hpp"
#include "attention_prefill.hpp"

namespace gd {

inline i64 attention_scratch(i64 batch, i64 tokens, i64 heads, i64 kv_heads, i64 slots, i64 dim,
                             i64 value_dim, int threads) {
  (void)batch, (void)slots;
  const i64 group = heads / kv_heads, rows = tokens * group;
  if (rows <= attending::few_queries)
    return threads * attending::FewScratch::floats(rows, dim, value_dim) * 4;
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
