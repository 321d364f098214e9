// Attention against a double reference: lengths, groups, windows, masks, padding, strides.
#include "attention.hpp"
#include "check.hpp"

using namespace check;

struct Case {
  i64 batch, tokens, heads, kv_heads, slots, dim, value_dim;
  bool positions, causal;
  i64 window;
  float softcap;
  int mask;         // mask_kind
  bool per_head;    // else the mask is broadcast over heads
  bool head_first;  // k and v are [b, g, s, d]
};

template <class T> struct Data {
  Buffer<T> q, k, v, out;
  Buffer<int32_t> positions;
  Buffer<uint8_t> flags;
  Buffer<float> bias;
  Buffer<T> bias_t;
};

static i64 random_position(const Case& c, i64 b, i64 t) {
  const i64 first = (c.slots - c.tokens) * (b + 1) / c.batch;  // another past for every sequence
  if (below(7) == 0) return -1;
  return first + t;
}

template <class T> static Data<T> make(const Case& c) {
  const i64 mask = c.batch * (c.per_head ? c.heads : 1) * c.tokens * c.slots;
  Data<T> d = {random<T>(c.batch * c.tokens * c.heads * c.dim, 2),
               random<T>(c.batch * c.slots * c.kv_heads * c.dim, 2),
               random<T>(c.batch * c.slots * c.kv_heads * c.value_dim),
               filled<T>(c.batch * c.tokens * c.heads * c.value_dim, 99),
               Buffer<int32_t>(c.batch * c.tokens),
               Buffer<uint8_t>(c.mask == 1 ? mask : 0),
               random<float>(c.mask == 2 ? mask : 0, 3),
               random<T>(c.mask == 3 ? mask : 0, 3)};
  for (i64 i = 0; i < d.positions.n; ++i)
    d.positions[i] = int32_t(random_position(c, i / c.tokens, i % c.tokens));
  for (i64 i = 0; i < d.flags.n; ++i) d.flags[i] = uint8_t(below(3) > 0);
  for (i64 i = 0; i < d.bias.n; ++i)
    if (below(5) == 0) d.bias[i] = -INFINITY;
  return d;
}

template <class T> static gd::Attention<T> arguments(const Case& c, const Data<T>& d) {
  gd::Attention<T> a = {};
  a.q = d.q.get(), a.k = d.k.get(), a.v = d.v.get(), a.out = d.out.get();
  a.positions = c.positions ? d.positions.get() : nullptr;
  a.batch = c.batch, a.tokens = c.tokens, a.heads = c.heads, a.kv_heads = c.kv_heads;
  a.slots = c.slots, a.dim = c.dim, a.value_dim = c.value_dim, a.position_stride = c.tokens;
  const auto fill = [](i64(&stride)[3], i64 x, i64 y, i64 z) {
    stride[0] = x, stride[1] = y, stride[2] = z;
  };
  fill(a.q_stride, c.tokens * c.heads * c.dim, c.heads * c.dim, c.dim);
  fill(a.out_stride, c.tokens * c.heads * c.value_dim, c.heads * c.value_dim, c.value_dim);
  const i64 slot = c.head_first ? 1 : c.kv_heads, head = c.head_first ? c.slots : 1;
  fill(a.k_stride, c.slots * c.kv_heads * c.dim, slot * c.dim, head * c.dim);
  fill(a.v_stride, c.slots * c.kv_heads * c.value_dim, slot * c.value_dim, head * c.value_dim);
  a.causal = c.causal, a.window = c.window, a.softcap = c.softcap,
  a.scale = 1 / sqrtf(float(c.dim));
  a.mask_kind = c.mask;
  a.mask = c.mask == 1   ? static_cast<const void*>(d.flags.get())
           : c.mask == 2 ? static_cast<const void*>(d.bias.get())
                         : d.bias_t.get();
  const i64 heads = c.per_head ? c.heads : 1;
  a.mask_stride[0] = heads * c.tokens * c.slots,
  a.mask_stride[1] = c.per_head ? c.tokens * c.slots : 0;
  a.mask_stride[2] = c.slots, a.mask_stride[3] = 1;
  return a;
}

template <class T> static double score(const gd::Attention<T>& a, i64 b, i64 h, i64 t, i64 j) {
  const i64 p = a.positions ? a.positions[b * a.position_stride + t] : t;
  if (a.positions && p < 0) return -INFINITY;
  if (a.causal && (j > p || (a.window > 0 && j <= p - a.window))) return -INFINITY;
  const T* q = a.q + b * a.q_stride[0] + t * a.q_stride[1] + h * a.q_stride[2];
  const T* k =
      a.k + b * a.k_stride[0] + j * a.k_stride[1] + h / (a.heads / a.kv_heads) * a.k_stride[2];
  double s = 0;
  for (i64 d = 0; d < a.dim; ++d) s += value(q[d]) * value(k[d]);
  s *= double(a.scale);
  if (a.softcap > 0) s = double(a.softcap) * tanh(s / double(a.softcap));
  const i64 at =
      b * a.mask_stride[0] + h * a.mask_stride[1] + t * a.mask_stride[2] + j * a.mask_stride[3];
  if (a.mask_kind == 1 && !static_cast<const uint8_t*>(a.mask)[at]) return -INFINITY;
  if (a.mask_kind == 2) s += double(static_cast<const float*>(a.mask)[at]);
  if (a.mask_kind == 3) s += value(static_cast<const T*>(a.mask)[at]);
  return s;
}

template <class T> static std::vector<double> reference(const gd::Attention<T>& a) {
  std::vector<double> want;
  for (i64 i = 0; i < a.batch * a.tokens * a.heads; ++i) {
    const i64 h = i % a.heads, t = i / a.heads % a.tokens, b = i / a.heads / a.tokens;
    std::vector<double> s, out(size_t(a.value_dim), 0.0);
    double top = -INFINITY, total = 0;
    for (i64 j = 0; j < a.slots; ++j) {
      s.push_back(score(a, b, h, t, j));
      top = fmax(top, s.back());
    }
    for (i64 j = 0; top > -INFINITY && j < a.slots; ++j) {
      const double e = exp(s[size_t(j)] - top);
      const T* v =
          a.v + b * a.v_stride[0] + j * a.v_stride[1] + h / (a.heads / a.kv_heads) * a.v_stride[2];
      total += e;
      for (i64 d = 0; d < a.value_dim; ++d) out[size_t(d)] += e * value(v[d]);
    }
    for (double o : out) want.push_back(total > 0 ? o / total : 0);
  }
  return want;
}

template <class T> static void test(const Case& c) {
  Data<T> d = make<T>(c);
  const gd::Attention<T> a = arguments(c, d);
  const auto want = reference(a);
  for (int threads : {1, 2, 3}) {
    for (i64 i = 0; i < d.out.n; ++i) set(d.out[i], 99);
    const Scratch scratch(gd::attention_scratch(c.batch, c.tokens, c.heads, c.kv_heads, c.slots,
                                                c.dim, c.value_dim, threads));
    gd::run_team(threads, [&](const gd::Team& team) { gd::attention(team, a, scratch.p); });
    close(d.out, want, gd::same<T, bf16>::value ? 4e-3 : 1e-5, "attention", c.tokens, c.slots,
          c.dim);
  }
}

static const Case cases[] = {
    {1, 1, 1, 1, 1, 1, 1, false, true, 0, 0, 0, false, false},
    {1, 1, 8, 8, 300, 64, 64, false, true, 0, 0, 0, false, true},
    {2, 1, 9, 3, 513, 64, 64, true, true, 0, 0, 0, false, false},
    {3, 1, 6, 1, 77, 40, 24, true, true, 0, 0, 0, false, true},
    {1, 4, 4, 2, 130, 33, 17, true, true, 0, 0, 0, false, false},
    {2, 3, 4, 1, 65, 20, 36, true, true, 9, 0, 0, false, false},
    {2, 5, 2, 2, 70, 16, 16, false, true, 0, 30, 2, true, false},
    {1, 1, 2, 2, 200, 128, 128, true, false, 0, 0, 1, false, false},
    {3, 20, 2, 1, 20, 24, 24, true, true, 0, 0, 0, false, false},
    {1, 70, 3, 3, 70, 64, 64, false, true, 0, 0, 0, false, false},
    {2, 65, 6, 2, 165, 40, 33, true, true, 0, 0, 0, false, true},
    {1, 130, 4, 2, 131, 17, 80, true, true, 50, 0, 0, false, false},
    {1, 100, 2, 1, 90, 16, 16, false, false, 0, 5, 1, true, false},
    {2, 33, 4, 4, 100, 32, 32, true, true, 0, 0, 2, false, true},
    {1, 40, 8, 1, 64, 8, 8, false, true, 3, 0, 3, true, false},
    {2, 17, 2, 2, 64, 128, 128, true, false, 0, 0, 0, false, false},
    {1, 200, 1, 1, 150, 8, 16, false, true, 0, 0, 0, false,
     false},  // the first fifty tokens see nothing
};

int main() {
  for (const Case& c : cases) {
    test<float>(c);
    test<bf16>(c);
  }
  return finish("attention");
}
