// Attention against a double reference: lengths, groups, windows, masks, padding, strides, and
// caches of every layout.  What no query may read is not a number.
#include "attention.hpp"
#include "check.hpp"

using namespace check;

enum Order { bsnd, bnsd, sbnd };

struct Case {
  i64 batch, tokens, heads, kv_heads, slots, dim, value_dim;
  bool positions, causal;
  i64 window;
  float softcap;
  int mask;       // mask_kind
  bool per_head;  // else the mask is broadcast over heads
  i64 keys = 0;   // of the mask; 0: the slots, 1: broadcast
};

struct Layout {
  Order order;
  i64 block;  // 0: not paged
  bool shifts;
};

static i64 random_position(const Case& c, i64 b, i64 t) {
  const i64 first = (c.slots - c.tokens) * (b + 1) / c.batch;  // another past for every sequence
  if (below(7) == 0) return -1;
  return first + t;
}

// Rows of numbers that a cache holds, as they lie in memory, and what they mean.
template <class E> struct Rows {
  i64 batch, slots, heads, dim;
  Layout layout;
  Buffer<E> memory;
  Buffer<int32_t> table;
  std::vector<double> number;

  i64 row_size() const { return gd::same<E, int8_t>::value ? dim + 4 : dim; }
  double at(i64 b, i64 s, i64 h, i64 d) const {
    return number[size_t(((b * slots + s) * heads + h) * dim + d)];
  }
  gd::Cache<const E> cache() const {
    const i64 blocks = layout.block ? memory.n / (layout.block * heads * row_size()) : batch;
    const i64 s = layout.block ? layout.block : slots, r = row_size();
    gd::Cache<const E> c = {memory.get(), {}, slots, nullptr, 0, layout.block, layout.shifts};
    c.stride[0] = layout.order == sbnd ? heads * r : s * heads * r;
    c.stride[1] = layout.order == bsnd ? heads * r : layout.order == bnsd ? r : blocks * heads * r;
    c.stride[2] = layout.order == bnsd ? s * r : r;
    if (layout.block) c.table = table.get(), c.table_stride = slots / layout.block;
    return c;
  }
  E* row(i64 b, i64 s, i64 h, i64 length) const {
    const gd::Cache<const E> c = cache();
    if (layout.shifts) s += slots - length;
    if (layout.block) b = table[(b * slots + s) / layout.block], s %= layout.block;
    return memory.get() + b * c.stride[0] + s * c.stride[1] + h * c.stride[2];
  }
};

template <class E> static void make_row(E* row, i64 dim, double* number) {
  for (i64 d = 0; d < dim; ++d) {
    set(row[d], uniform());
    number[d] = value(row[d]);
  }
}
static void make_row(int8_t* row, i64 dim, double* number) {
  const float scale = float(uniform() + 1.5) / 127;
  __builtin_memcpy(row + dim, &scale, sizeof(scale));
  for (i64 d = 0; d < dim; ++d) {
    row[d] = int8_t(below(255) - 127);
    number[d] = double(row[d]) * double(scale);
  }
}

// Pages of a sequence that has slots beyond `lengths[b]` have no block.
static Buffer<int32_t> make_table(i64 batch, i64 pages, i64 block,
                                  const std::vector<i64>& lengths) {
  std::vector<int32_t> blocks;
  for (i64 i = 0; i < batch * pages + 1; ++i)
    blocks.insert(blocks.begin() + below(i + 1), int32_t(i));
  Buffer<int32_t> table(batch * pages);
  for (i64 i = 0; i < table.n; ++i)
    table[i] = i % pages * block < lengths[size_t(i / pages)] ? blocks[size_t(i)] : -1;
  return table;
}

// Slots from `lengths[b]` on, and blocks that nobody has, are not numbers.
template <class E>
static Rows<E> make_rows(i64 batch, i64 slots, i64 heads, i64 dim, Layout layout,
                         const std::vector<i64>& lengths) {
  const i64 pages = layout.block ? slots / layout.block : 0;
  const i64 rows = (layout.block ? (batch * pages + 1) * layout.block : batch * slots) * heads;
  Rows<E> x = {batch, slots, heads, dim, layout, Buffer<E>(0),
               make_table(batch, pages, layout.block, lengths),
               std::vector<double>(size_t(batch * slots * heads * dim))};
  x.memory = Buffer<E>(rows * x.row_size());
  __builtin_memset(static_cast<void*>(x.memory.get()), 0xff, size_t(x.memory.n) * sizeof(E));
  for (i64 b = 0; b < batch; ++b)
    for (i64 s = 0; s < lengths[size_t(b)]; ++s)
      for (i64 h = 0; h < heads; ++h)
        make_row(x.row(b, s, h, lengths[size_t(b)]), dim,
                 &x.number[size_t(((b * slots + s) * heads + h) * dim)]);
  return x;
}

template <class T, class K, class V> struct Data {
  Case c;
  Buffer<T> q, out;
  Buffer<int32_t> positions;
  Buffer<uint8_t> flags;
  Buffer<float> bias;
  Buffer<T> bias_t;
  std::vector<i64> lengths;  // slots from here on are seen by nobody
  Rows<K> k;
  Rows<V> v;

  i64 keys() const { return c.keys ? c.keys : c.slots; }
  i64 position(i64 b, i64 t) const { return c.positions ? positions[b * c.tokens + t] : t; }
};

// A mask of which some rows hide everything.
template <class T, class K, class V> static void make_mask(Data<T, K, V>& d) {
  for (i64 i = 0; i < d.flags.n; ++i) d.flags[i] = uint8_t(below(3) > 0);
  for (i64 i = 0; i < d.bias.n; ++i)
    if (below(5) == 0) d.bias[i] = -INFINITY;
  for (i64 at = below(4) * d.keys(); at < d.flags.n; at += 4 * d.keys())
    for (i64 i = 0; i < d.keys(); ++i) d.flags[at + i] = 0;
  for (i64 at = below(4) * d.keys(); at < d.bias.n; at += 4 * d.keys())
    for (i64 i = 0; i < d.keys(); ++i) d.bias[at + i] = -INFINITY;
}

template <class T, class K, class V> static Data<T, K, V> make(const Case& c, Layout layout) {
  const i64 keys = c.keys ? c.keys : c.slots;
  const i64 mask = c.batch * (c.per_head ? c.heads : 1) * c.tokens * keys;
  Buffer<int32_t> positions(c.batch * c.tokens);
  std::vector<i64> lengths(size_t(c.batch), 0);
  for (i64 i = 0; i < positions.n; ++i) {
    positions[i] = int32_t(random_position(c, i / c.tokens, i % c.tokens));
    i64& length = lengths[size_t(i / c.tokens)];
    length = gd::most(length, c.positions ? positions[i] + 1 : i % c.tokens + 1);
  }
  for (i64& length : lengths)
    length = !c.causal && !layout.shifts ? c.slots : gd::least(length, c.slots);
  Data<T, K, V> d = {c,
                     random<T>(c.batch * c.tokens * c.heads * c.dim, 2),
                     filled<T>(c.batch * c.tokens * c.heads * c.value_dim, 99),
                     std::move(positions),
                     Buffer<uint8_t>(c.mask == 1 ? mask : 0),
                     random<float>(c.mask == 2 ? mask : 0, 3),
                     random<T>(c.mask == 3 ? mask : 0, 3),
                     lengths,
                     make_rows<K>(c.batch, c.slots, c.kv_heads, c.dim, layout, lengths),
                     make_rows<V>(c.batch, c.slots, c.kv_heads, c.value_dim, layout, lengths)};
  make_mask(d);
  return d;
}

template <class T, class K, class V>
static gd::Attention<T, K, V> arguments(const Case& c, const Data<T, K, V>& d) {
  gd::Attention<T, K, V> a = {};
  a.q = d.q.get(), a.out = d.out.get(), a.k = d.k.cache(), a.v = d.v.cache();
  a.positions = c.positions ? d.positions.get() : nullptr;
  a.batch = c.batch, a.tokens = c.tokens, a.heads = c.heads, a.kv_heads = c.kv_heads;
  a.dim = c.dim, a.value_dim = c.value_dim, a.position_stride = c.tokens;
  const auto fill = [](i64(&stride)[3], i64 x, i64 y, i64 z) {
    stride[0] = x, stride[1] = y, stride[2] = z;
  };
  fill(a.q_stride, c.tokens * c.heads * c.dim, c.heads * c.dim, c.dim);
  fill(a.out_stride, c.tokens * c.heads * c.value_dim, c.heads * c.value_dim, c.value_dim);
  a.causal = c.causal, a.window = c.window, a.softcap = c.softcap,
  a.scale = 1 / sqrtf(float(c.dim));
  a.mask_kind = c.mask;
  a.mask = c.mask == 1   ? static_cast<const void*>(d.flags.get())
           : c.mask == 2 ? static_cast<const void*>(d.bias.get())
                         : d.bias_t.get();
  const i64 heads = c.per_head ? c.heads : 1, keys = d.keys();
  a.mask_stride[0] = heads * c.tokens * keys, a.mask_stride[1] = c.per_head ? c.tokens * keys : 0;
  a.mask_stride[2] = keys, a.mask_stride[3] = keys > 1, a.mask_keys = keys > 1 ? keys : c.slots;
  return a;
}

template <class T, class K, class V>
static double score(const Data<T, K, V>& d, i64 b, i64 h, i64 t, i64 j) {
  const Case& c = d.c;
  const i64 p = d.position(b, t), keys = d.keys();
  if (p < 0 || j >= d.lengths[size_t(b)] || (c.mask != 0 && keys > 1 && j >= keys))
    return -INFINITY;
  if (c.causal && (j > p || (c.window > 0 && j <= p - c.window))) return -INFINITY;
  double s = 0;
  for (i64 i = 0; i < c.dim; ++i)
    s += value(d.q[((b * c.tokens + t) * c.heads + h) * c.dim + i]) *
         d.k.at(b, j, h / (c.heads / c.kv_heads), i);
  s /= sqrt(double(c.dim));
  if (c.softcap > 0) s = double(c.softcap) * tanh(s / double(c.softcap));
  const i64 row = (b * (c.per_head ? c.heads : 1) + (c.per_head ? h : 0)) * c.tokens + t;
  const i64 at = row * keys + (keys > 1 ? j : 0);
  if (c.mask == 1 && !d.flags[at]) return -INFINITY;
  if (c.mask == 2) s += double(d.bias[at]);
  if (c.mask == 3) s += value(d.bias_t[at]);
  return s;
}

template <class T, class K, class V>
static std::vector<double> reference(const Data<T, K, V>& d) {
  const Case& c = d.c;
  std::vector<double> want;
  for (i64 i = 0; i < c.batch * c.tokens * c.heads; ++i) {
    const i64 h = i % c.heads, t = i / c.heads % c.tokens, b = i / c.heads / c.tokens;
    std::vector<double> s, out(size_t(c.value_dim), 0.0);
    double top = -INFINITY, total = 0;
    for (i64 j = 0; j < c.slots; ++j) {
      s.push_back(score(d, b, h, t, j));
      top = fmax(top, s.back());
    }
    for (i64 j = 0; top > -INFINITY && j < c.slots; ++j) {
      const double e = exp(s[size_t(j)] - top);
      total += e;
      for (i64 n = 0; n < c.value_dim; ++n)
        out[size_t(n)] += e * d.v.at(b, j, h / (c.heads / c.kv_heads), n);
    }
    for (double o : out) want.push_back(total > 0 ? o / total : 0);
  }
  return want;
}

template <class T, class K = T, class V = T> static void test(Case c, Layout layout) {
  if (layout.block) c.slots = gd::round_up(c.slots, layout.block);
  Data<T, K, V> d = make<T, K, V>(c, layout);
  const gd::Attention<T, K, V> a = arguments(c, d);
  const auto want = reference(d);
  for (int threads : {1, 2, 3}) {
    for (i64 i = 0; i < d.out.n; ++i) set(d.out[i], 99);
    const Scratch scratch(gd::attention_scratch(c.tokens, c.heads, c.kv_heads, c.dim, c.value_dim,
                                                gd::attending::heads_together(a), threads));
    gd::run_team(threads, [&](const gd::Team& team) { gd::attention(team, a, scratch.p); });
    close(d.out, want, gd::same<T, bf16>::value ? 4e-3 : 1e-5, "attention", c.tokens, c.slots,
          layout.order * 100 + layout.block * 10 + layout.shifts);
  }
}

static const Case cases[] = {
    {1, 1, 1, 1, 1, 1, 1, false, true, 0, 0, 0, false},
    {1, 1, 8, 8, 300, 64, 64, false, true, 0, 0, 0, false},
    {2, 1, 9, 3, 513, 64, 64, true, true, 0, 0, 0, false},
    {3, 1, 6, 1, 77, 40, 24, true, true, 0, 0, 0, false},
    {1, 4, 4, 2, 130, 33, 17, true, true, 0, 0, 0, false},
    {2, 3, 4, 1, 65, 20, 36, true, true, 9, 0, 0, false},
    {2, 5, 2, 2, 70, 16, 16, false, true, 0, 30, 2, true},
    {1, 1, 2, 2, 200, 128, 128, true, false, 0, 0, 1, false},
    {3, 20, 2, 1, 20, 24, 24, true, true, 0, 0, 0, false},
    {1, 70, 3, 3, 70, 64, 64, false, true, 0, 0, 0, false},
    {2, 65, 6, 2, 165, 40, 33, true, true, 0, 0, 0, false},
    {1, 130, 4, 2, 131, 17, 80, true, true, 50, 0, 0, false},
    {1, 100, 2, 1, 90, 16, 16, false, false, 0, 5, 1, true},
    {2, 33, 4, 4, 100, 32, 32, true, true, 0, 0, 2, false},
    {1, 40, 8, 1, 64, 8, 8, false, true, 3, 0, 3, true},
    {2, 17, 2, 2, 64, 128, 128, true, false, 0, 0, 0, false},
    // The first fifty tokens see nothing.
    {1, 200, 1, 1, 150, 8, 16, false, true, 0, 0, 0, false},
    // Masks that are narrower than the slots, wider, or the same for all keys.
    {2, 1, 4, 2, 90, 24, 16, true, false, 0, 0, 1, false, 37},
    {2, 3, 4, 2, 90, 24, 16, true, true, 0, 0, 2, true, 80},
    {1, 30, 2, 2, 90, 24, 16, true, false, 0, 0, 2, false, 41},
    {2, 40, 2, 1, 90, 24, 16, true, true, 0, 0, 1, false, 70},
    {2, 2, 2, 2, 50, 16, 16, true, false, 0, 0, 3, false, 67},
    {1, 40, 2, 2, 50, 16, 16, true, true, 9, 0, 3, false, 130},
    {1, 3, 2, 2, 30, 16, 16, true, true, 0, 0, 1, false, 1},
};
static const Layout layouts[] = {{bsnd, 0, false}, {bnsd, 0, false}, {sbnd, 0, false},
                                 {bnsd, 16, false}, {bsnd, 5, false}, {sbnd, 1, false},
                                 {bnsd, 0, true}, {sbnd, 0, true}};

// Steps of the softmax at the ends of the range, and where scores rise.
static void test_soften() {
  const gd::i64 n = 2 * gd::W;
  const auto step = [&](float even, float odd, gd::Range see, gd::attending::Running& run) {
    float scores[2 * gd::W];
    for (i64 i = 0; i < n; ++i) scores[i] = i % 2 ? odd : even;
    const float shrink = gd::attending::soften_row(scores, 0, n, see, run);
    for (i64 i = 0; i < n; ++i)
      if (i < see.begin || i >= see.end) expect(scores[i] == 0, "weights of what is hidden");
    return shrink;
  };
  gd::attending::Running run = {-INFINITY, 0};
  step(-3.4e38f, -3.4e38f, {0, n}, run);
  expect(run.total == float(n), "lowest scores weigh the same");
  run = {-INFINITY, 0};
  expect(step(1, 1, {n, n}, run) == 1 && run.total == 0, "nothing is seen");
  step(2, -INFINITY, {0, n - 1}, run);
  expect(run.top == 2 && run.total == float(n / 2), "half is seen");
  step(3, -200, {1, n}, run);
  expect(run.top == 2 && fabs(run.total - (n / 2 + (n / 2 - 1) * exp(1.0))) < 1e-4, "small rise");
  const float before = run.total, shrink = step(40, 0, {0, 1}, run);
  expect(run.top == 40 && run.total == before * shrink + 1, "large rise");
  for (const float top : {-INFINITY, 40.f}) {
    run = {top, 0};
    step(-INFINITY, NAN, {0, n}, run);
    expect(run.total != run.total, "NaN reaches the total");
  }
}

int main() {
  test_soften();
  for (const Case& c : cases)
    for (const Layout& layout : layouts) {
      if (layout.shifts && !c.positions) continue;
      test<float>(c, layout);
      test<bf16>(c, layout);
      test<float, int8_t, int8_t>(c, layout);
      test<bf16, int8_t, int8_t>(c, layout);
      if (layout.order == bsnd) test<float, int8_t, float>(c, layout);
    }
  return finish("attention");
}
