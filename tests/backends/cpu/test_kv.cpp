// Caches of every layout: appending with and without rotation, making room, int8 rows, and copies.
#include <string.h>
#include <numeric>
#include "check.hpp"
#include "kv.hpp"

using namespace check;
using gd::Team;

static double value(int8_t n) { return n; }

struct Shape {
  i64 batch, slots, heads, dim;
};
struct Layout {
  const char* order;  // of batch, slots and heads
  i64 block;          // 0: not paged
  bool shifts;
};

// The memory of one cache, with its own idea of where rows are.
template <class E> struct Store {
  Shape shape;
  Layout layout;
  i64 width, pages, blocks;
  Buffer<E> memory;
  Buffer<int32_t> table;
  i64 stride[3];

  Store(Shape s, Layout l)
      : shape(s),
        layout(l),
        width(s.dim + (sizeof(E) == 1 ? 4 : 0)),
        pages(l.block ? s.slots / l.block : 0),
        blocks(s.batch * pages + 2),
        memory((l.block ? blocks * l.block : s.batch * s.slots) * s.heads * width),
        table(s.batch * pages) {
    memset(static_cast<void*>(memory.get()), 0x41, size_t(memory.n) * sizeof(E));
    for (i64 i = 0; i < table.n; ++i) table[i] = int32_t(i + 1);
    for (i64 i = table.n - 1; i > 0; --i) std::swap(table[i], table[below(i + 1)]);
    i64 step = width;
    for (int axis = 2; axis >= 0; --axis) {
      const char name = l.order[axis];
      stride[name == 'b' ? 0 : name == 's' ? 1 : 2] = step;
      step *= name == 'n' ? s.heads : name == 's' ? (l.block ? l.block : s.slots)
                                                  : (l.block ? blocks : s.batch);
    }
  }
  gd::Cache<E> cache() const {
    return {memory.get(), {stride[0], stride[1], stride[2]}, shape.slots, table.get(),
            pages, layout.block, layout.shifts};
  }
  // Row of a slot of a sequence of `length` slots; nullptr where it is in no block.
  E* row(i64 b, i64 slot, i64 head, i64 length) const {
    if (layout.shifts) slot += shape.slots - length;
    if (layout.block) {
      b = table[b * pages + slot / layout.block];
      slot %= layout.block;
    }
    return b < 0 ? nullptr
                 : memory.get() + b * stride[0] + slot * stride[1] + head * stride[2];
  }
};

// A row against what was appended: the same, or int8 numbers as they are defined.
template <class T> static void same_row(const T* got, const T* want, i64 dim, const char* what) {
  expect(memcmp(got, want, size_t(dim) * sizeof(T)) == 0, what, dim);
}
template <class T>
static void same_row(const int8_t* got, const T* want, i64 dim, const char* what) {
  float top = 0, scale;
  for (i64 i = 0; i < dim; ++i) top = fmaxf(top, fabsf(float(value(want[i]))));
  memcpy(&scale, got + dim, sizeof(scale));
  expect(scale == top / 127, what, dim);
  for (i64 i = 0; i < dim; ++i) {
    const float x = float(value(want[i]));
    const float number = scale > 0 ? nearbyintf(x / scale) : 0;
    expect(number == float(got[i]), what, dim, i, got[i]);
    expect(fabs(double(got[i]) * double(scale) - double(x)) <= double(scale) * 0.50001, what, i);
  }
}

// Everything that was appended, as [b, slot, head, dim], and how long the sequences are.
template <class T> struct History {
  Shape shape;
  Buffer<T> rows;
  std::vector<i64> length;
  explicit History(Shape s)
      : shape(s),
        rows(filled<T>(s.batch * s.slots * s.heads * s.dim, 7)),
        length(size_t(s.batch), 0) {}
  T* row(i64 b, i64 slot, i64 head) const {
    return rows.get() + ((b * shape.slots + slot) * shape.heads + head) * shape.dim;
  }
};

// A chunk of new rows for every sequence; the second one has padding in front, in between or alone.
template <class T> struct Chunk {
  i64 tokens;
  Buffer<T> x;
  Buffer<int32_t> positions;
  Chunk(const Shape& s, i64 n, int padding, History<T>& all)
      : tokens(n), x(random<T>(s.batch * n * s.heads * s.dim)), positions(s.batch * n) {
    for (i64 b = 0; b < s.batch; ++b)
      for (i64 t = 0; t < n; ++t) {
        const bool empty = b == 1 && (padding == 2 || (padding == 1 && t % 2 == 0));
        i64& length = all.length[size_t(b)];
        positions[b * n + t] = int32_t(empty ? -1 : length);
        if (empty) continue;
        memcpy(static_cast<void*>(all.row(b, length, 0)), x.get() + (b * n + t) * s.heads * s.dim,
               size_t(s.heads * s.dim) * sizeof(T));
        ++length;
      }
  }
  gd::View4<const T> view(const Shape& s) const {
    return {x.get(), {tokens * s.heads * s.dim, s.heads * s.dim, s.dim}};
  }
  gd::Positions at() const { return {positions.get(), tokens, tokens}; }
};

template <class T, class E> static void check_rows(const Store<E>& store, const History<T>& all,
                                                   const char* what) {
  const Shape& s = store.shape;
  for (i64 b = 0; b < s.batch; ++b)
    for (i64 p = 0; p < s.slots; ++p)
      for (i64 h = 0; h < s.heads; ++h) {
        const i64 length = all.length[size_t(b)];
        const E* row = p < length || !store.layout.shifts ? store.row(b, p, h, length) : nullptr;
        if (row && p < length) same_row(row, all.row(b, p, h), s.dim, what);
        for (i64 i = 0; row && p >= length && i < store.width; ++i)
          expect(memcmp(row + i, "\x41\x41\x41\x41", sizeof(E)) == 0, "nothing else is written", b,
                 p, h);
      }
}

template <class T, class E> static void check_copy(const Store<E>& store, int threads) {
  const Shape& s = store.shape;
  auto out = filled<T>(s.batch * s.slots * s.heads * s.dim, 5);
  gd::Cache<E> c = store.cache();
  const gd::Cache<const E> cache = {c.p, {c.stride[0], c.stride[1], c.stride[2]}, c.slots, c.table,
                                    c.table_stride, c.block, c.shifts};
  const i64 each = s.heads * s.dim;
  gd::run_team(threads, [&](const Team& team) {
    gd::relayout(team, cache, gd::View4<T>{out.get(), {s.slots * each, each, s.dim}}, s.batch,
                 s.heads, s.dim);
  });
  Buffer<T> want(s.dim);
  for (i64 i = 0; i < out.n; i += s.dim) {
    const E* row = store.row(i / each / s.slots, i / each % s.slots, i / s.dim % s.heads, 0);
    for (i64 d = 0; d < s.dim; ++d)
      set(want[d], row ? value(row[d]) * double(gd::row_scale(row, s.dim)) : 0);
    same_row(out.get() + i, want.get(), s.dim, "relayout");
  }
}

// Chunks appended one after the other, by kv_append and by rope_append with angles of zero.
template <class T, class E> static void test_append(Shape s, Layout layout, int threads) {
  const Store<E> alone(s, layout), k(s, layout), v(s, layout);
  if (layout.block)  // a page that has no block, which no position is in
    alone.table[2 * alone.pages - 1] = -1;
  History<T> all(s);
  int step = 0;
  for (const i64 tokens : {5, 1, 3, 1, 3}) {
    const int padding = ++step == 2 ? 2 : step % 2;
    const Chunk<T> chunk(s, tokens, padding, all);
    const auto q = random<T>(s.batch * tokens * s.dim);
    auto q_out = filled<T>(q.n, 9);
    const auto cos = filled<float>(s.dim / 2, 1), sin = filled<float>(s.dim / 2, 0);
    const i64 each = gd::round_up(s.dim * i64(sizeof(T)), 64);
    const Scratch scratch(sizeof(E) == 1 ? threads * each : 0);
    const gd::RopeAppend<T, E, E> rope = {
        {q.get(), {tokens * s.dim, s.dim, s.dim}}, chunk.view(s), chunk.view(s),
        {cos.get(), sin.get(), {0, 0}}, chunk.at(), {q_out.get(), {tokens * s.dim, s.dim, s.dim}},
        k.cache(), v.cache(), s.batch, 1, s.heads, s.dim, s.dim, s.dim / 2 * 2, false};
    gd::run_team(threads, [&](const Team& team) {
      gd::kv_append(team, chunk.view(s), chunk.at(), alone.cache(), s.batch, s.heads, s.dim);
      gd::rope_append(team, rope, scratch.p);
    });
    expect(memcmp(q.get(), q_out.get(), size_t(q.n) * sizeof(T)) == 0, "q");
    check_rows(alone, all, "kv_append");
    check_rows(k, all, "rope_append k");
    check_rows(v, all, "rope_append v");
  }
  if (!layout.shifts) check_copy<T>(alone, threads);
}

// Rows that are normed and turned are rounded to T, and only then to int8.
template <class T> static void test_rotated(int threads, i64 dim, i64 rotary) {
  const Shape s = {2, 8, 3, dim};
  const Store<T> k(s, {"bnsd", 0, false}), v(s, {"bnsd", 0, false});
  const Store<int8_t> small_k(s, {"sbnd", 4, false}), small_v(s, {"bsnd", 0, true});
  History<T> all(s);
  const Chunk<T> chunk(s, 4, 1, all);
  const auto cos = random<float>(rotary / 2), sin = random<float>(rotary / 2);
  const auto q = random<T>(s.batch * 4 * dim), weight = random<T>(dim, 2);
  auto out = filled<T>(q.n, 9), again = filled<T>(q.n, 9);
  const Scratch scratch(threads * gd::round_up(dim * i64(sizeof(T)), 64));
  const gd::RopeAppend<T> plain = {
      {q.get(), {4 * dim, dim, dim}}, chunk.view(s), chunk.view(s), {cos.get(), sin.get(), {0, 0}},
      chunk.at(), {out.get(), {4 * dim, dim, dim}}, k.cache(), v.cache(), s.batch, 1, s.heads, dim,
      dim, rotary, true};
  const gd::RopeAppend<T, int8_t, int8_t> small = {
      plain.q, plain.k, plain.v, plain.angles, plain.positions, {again.get(), {4 * dim, dim, dim}},
      small_k.cache(), small_v.cache(), s.batch, 1, s.heads, dim, dim, rotary, true};
  gd::run_team(threads, [&](const Team& team) {
    gd::norm_rope_append(team, gd::NormRopeAppend<T, T>{plain, weight.get(), weight.get(), 1e-3f},
                         nullptr);
    gd::norm_rope_append(
        team, gd::NormRopeAppend<T, T, int8_t, int8_t>{small, weight.get(), weight.get(), 1e-3f},
        scratch.p);
  });
  expect(memcmp(out.get(), again.get(), size_t(q.n) * sizeof(T)) == 0, "q of both");
  for (i64 b = 0; b < s.batch; ++b)
    for (i64 p = 0; p < all.length[size_t(b)]; ++p)
      for (i64 h = 0; h < s.heads; ++h) {
        const i64 length = all.length[size_t(b)];
        same_row(small_k.row(b, p, h, length), k.row(b, p, h, length), dim, "int8 k");
        same_row(small_v.row(b, p, h, length), v.row(b, p, h, length), dim, "int8 v");
      }
}

static void check_quantised(std::vector<float> x, std::vector<int> want, float scale) {
  const i64 dim = i64(x.size());
  Buffer<float> from(dim), back(dim);
  Buffer<int8_t> row(dim + 4);
  std::copy(x.begin(), x.end(), from.get());
  gd::store_row(from.get(), row.get(), dim);
  for (i64 i = 0; i < dim; ++i) expect(row[i] == want[size_t(i)], "quantised", dim, i, row[i]);
  const float got = gd::row_scale(row.get(), dim);
  expect(got == scale || (got != got && scale != scale), "scale", dim);
  gd::load_row(row.get(), back.get(), dim);
  for (i64 i = 0; i < dim && scale - scale == 0; ++i)
    expect(back[i] == float(want[size_t(i)]) * scale, "there and back", dim, i);
  for (i64 i = 0; i < dim && scale - scale != 0; ++i)
    expect(back[i] != back[i], "a row that is not finite reads as NaN", dim, i);
}

static void test_quantised() {
  check_quantised({0, -0.f, 0}, {0, 0, 0}, 0);
  check_quantised({127, 2.5f, 3.5f, -2.5f, -127, 0.5f, -0.5f, 1.5f, -126.5f},
                  {127, 2, 4, -2, -127, 0, 0, 2, -126}, 1);
  check_quantised({-254}, {-127}, 2);
  check_quantised({1, NAN, 3, 4, 5, 6, 7, 8, 9}, std::vector<int>(9, 0), NAN);
  check_quantised({1, 2, 3, 4, 5, 6, 7, 8, NAN}, std::vector<int>(9, 0), NAN);
  check_quantised({1, -INFINITY, 3}, std::vector<int>(3, 0), INFINITY);
  check_quantised({1e-45f, 0}, {0, 0}, 0);
  check_quantised({2.66e-43f, 0}, {127, 0}, 1.4e-45f);  // 190 of the smallest: more than 127 fit
  check_quantised({3.4028235e38f, -3.4028235e38f}, {127, -127}, 3.4028235e38f / 127);
}

// Positions that are no slots, which nobody should ask for: nothing is written outside the memory.
static void test_no_slots(int threads, bool shifts) {
  const Shape s = {1, 4, 2, 3};
  const Store<float> store(s, {"bsnd", 0, shifts});
  const auto x = random<float>(6 * s.heads * s.dim);
  Buffer<int32_t> positions(6);
  for (i64 first : {0, 2, 4, 1000000}) {
    std::iota(positions.get(), positions.get() + 6, int32_t(first));
    gd::run_team(threads, [&](const Team& team) {
      gd::kv_append(team, gd::View4<const float>{x.get(), {0, s.heads * s.dim, s.dim}},
                    gd::Positions{positions.get(), 6, 6}, store.cache(), 1, s.heads, s.dim);
    });
  }
}

// A position in a page without a block is not written.
static void test_no_block(int threads) {
  const Shape s = {1, 4, 1, 2};
  const Store<float> store(s, {"bnsd", 2, false});
  store.table[0] = -1;
  const auto x = random<float>(4 * s.dim);
  Buffer<int32_t> positions(4);
  std::iota(positions.get(), positions.get() + 4, 0);
  gd::run_team(threads, [&](const Team& team) {
    gd::kv_append(team, gd::View4<const float>{x.get(), {0, s.dim, s.dim}},
                  gd::Positions{positions.get(), 4, 4}, store.cache(), 1, 1, s.dim);
  });
  int written = 0;
  for (i64 i = 0; i < store.memory.n; ++i)
    written += memcmp(&store.memory[i], "\x41\x41\x41\x41", 4) != 0;
  expect(written == 2 * s.dim, "two slots are written", written);
  same_row(store.row(0, 3, 0, 4), x.get() + 3 * s.dim, s.dim, "the page that is there");
}

template <class T> static void test_layouts(int threads) {
  for (const char* order : {"bsn", "bns", "sbn"}) {
    for (i64 block : {0, 1, 5, 16}) {
      const Shape shape = {2, block == 16 ? 32 : 20, 2, block == 5 ? 7 : 24};
      test_append<T, T>(shape, {order, block, false}, threads);
      test_append<T, int8_t>(shape, {order, block, false}, threads);
    }
    for (i64 heads : {1, 3}) {
      test_append<T, T>({2, 13, heads, 12}, {order, 0, true}, threads);
      test_append<T, int8_t>({2, 14, heads, 6}, {order, 0, true}, threads);
    }
  }
  test_rotated<T>(threads, 24, 24);
  test_rotated<T>(threads, 14, 6);
}

int main() {
  test_quantised();
  for (int threads : {1, 2}) {
    test_layouts<float>(threads);
    test_layouts<bf16>(threads);
    test_no_slots(threads, false);
    test_no_slots(threads, true);
    test_no_block(threads);
  }
  return finish("kv");
}
