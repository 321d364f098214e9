// Linears whose weight is chosen row by row: the rows of one expert are multiplied together, and
// the weights of an expert that no row chose are never read.
#pragma once
#include "matmul.hpp"

namespace gd {

// y[r] = x[r / shared] w[ids[r]]^T, where w is `experts` weights [n, k], each packed by itself, one
// after the other.
template <class T> struct ExpertLinear {
  const T* x;
  i64 x_stride, shared;
  const T* w;
  const int32_t* ids;
  i64 rows, experts, n, k;

  const T* row(i64 r) const { return x + r / shared * x_stride; }
};

namespace experts {
using namespace product;

// The rows of expert e are rows[first[e + 1]] to rows[first[e + 2] - 1]; before all others come
// those of none, whose id is no expert.
struct Order {
  int32_t *rows, *first;
};
inline i64 order_size(i64 rows, i64 experts) { return round_up((rows + experts + 2) * 4, 64); }

template <class T> GD_NOINLINE Order sorted(const ExpertLinear<T>& p, char* memory) {
  const Order order = {reinterpret_cast<int32_t*>(memory),
                       reinterpret_cast<int32_t*>(memory) + p.rows};
  const auto group = [&](i64 r) {
    return p.ids[r] < 0 || p.ids[r] >= p.experts ? 0 : p.ids[r] + 1;
  };
  for (i64 e = 0; e < p.experts + 2; ++e) order.first[e] = 0;
  for (i64 r = 0; r < p.rows; ++r) ++order.first[group(r) + 1];
  for (i64 e = 0; e <= p.experts; ++e) order.first[e + 1] += order.first[e];
  for (i64 r = 0; r < p.rows; ++r) order.rows[order.first[group(r)]++] = int32_t(r);
  for (i64 e = p.experts + 1; e > 0; --e) order.first[e] = order.first[e - 1];
  order.first[0] = 0;
  return order;
}

// Some rows of one expert, and where they lie in the scratch.
struct Chunk {
  const int32_t* rows;
  i64 count, expert;
  char* x;
};
// Where pairs have to be unpacked, that pays for the blocked path only from many rows on.
template <class T>
constexpr i64 most_few = same<typename Kinds<T>::few, PairWords>::value ? 16 * R : few_rows;
template <class T> GD_INLINE bool is_many(i64 count) { return count > most_few<T>; }

// body(chunk) for every chunk of every expert that was chosen.
template <class T, class Body>
GD_INLINE void for_chunks(const ExpertLinear<T>& p, const Order& order, char* x, Body body) {
  for (i64 e = 0; e < p.experts; ++e)
    for (i64 i = order.first[e + 1]; i < order.first[e + 2]; i += chunk_rows) {
      const i64 count = least(chunk_rows, order.first[e + 2] - i);
      body(Chunk{order.rows + i, count, e, x});
      x += (is_many<T>(count) ? round_up(count, R) : count) * x_words<T>(p.k) * 4;
    }
}

// The rows of x as the tiles read them; the threads take rows and strips in turn.
template <class T>
GD_NOINLINE void copy_rows(const Team& team, const ExpertLinear<T>& p, const Order& order,
                           char* x) {
  const i64 row_words = x_words<T>(p.k);
  i64 item = 0;
  for_chunks(p, order, x, [&](const Chunk& c) {
    if (!is_many<T>(c.count)) {
      for (i64 r = 0; copies<T>(p.k) && r < c.count; ++r)
        if (item++ % team.count == team.id)
          copy_words(p.row(c.rows[r]), p.k, 0, row_words, c.x + r * row_words * 4);
      return;
    }
    for (i64 s = 0; s < c.count; s += R) {
      if (item++ % team.count != team.id) continue;
      for (i64 begin = 0; begin < row_words; begin += block_k) {
        const i64 size = least(block_k, row_words - begin);
        copy_strip([&](i64 r) { return p.row(c.rows[s + r]); }, c.count - s, p.k, begin, size,
                   reinterpret_cast<int32_t*>(c.x) + begin * round_up(c.count, R) + s * size);
      }
    }
  });
}

template <class T, class Epi>
GD_NOINLINE void few_of(const Team& team, const ExpertLinear<T>& p, const Chunk& c, const T* w,
                        Epi& epi) {
  const char* pointers[most_few<T>];
  for (i64 r = 0; r < c.count; ++r)
    pointers[r] = copies<T>(p.k) ? c.x + r * x_words<T>(p.k) * 4
                                 : reinterpret_cast<const char*>(p.row(c.rows[r]));
  alignas(64) float sums[most_few<T> * few_stride];
  team.divide(panels(p.n), side_panels, [&](Range group) {
    few_panels(pointers, few_block_bytes<T>(c.count), c.count, w, group, p.k, sums);
    const i64 column = group.begin * NB;
    for (i64 r = 0; r < c.count; ++r)
      drain<1>(sums + r * few_stride, 0, few_stride, c.rows[r], 1, column,
               least(group.end * NB, p.n) - column, epi);
  });
}

template <class T, class Epi>
GD_NOINLINE void many_of(const ExpertLinear<T>& p, const Chunk& c, const T* w, Range mine,
                         float* own, Epi& epi) {
  constexpr i64 group = block_columns / NB;
  float* sums = own + longest_block * block_columns;
  for (i64 panel = mine.begin; panel < mine.end; panel += group) {
    const Range block = {panel, least(panel + group, mine.end)};
    many_block<T>(c.x, round_up(c.count, R), {0, c.count}, w, block, p.k, own, sums);
    for (i64 r = 0; r < c.count; ++r)
      drain<1>(sums + r * block_columns, 0, block_columns, c.rows[r], 1, panel * NB,
               least(block.end * NB, p.n) - panel * NB, epi);
  }
}

// Rows of x that the scratch has room for, as the last strip of every expert is padded.
inline i64 room(i64 rows, i64 experts) { return rows + least(experts, rows / (R + 1)) * (R - 1); }
inline i64 x_bytes(i64 rows, i64 experts, i64 k) {
  return round_up(room(rows, experts) * round_up(k, 2) * 4, 64);
}
inline i64 own_bytes(i64 rows) {
  return rows <= R ? 0 : own_floats(least(round_up(rows, R), chunk_rows), 1) * 4;
}

}  // namespace experts

// Bytes of scratch that expert_linear needs for these sizes, for every element type.
inline i64 expert_scratch(i64 rows, i64 experts, i64 k, int threads) {
  return experts::x_bytes(rows, experts, k) +
         threads * (experts::order_size(rows, experts) + experts::own_bytes(rows));
}

// For every row and vector of columns: epi(row, column, lanes, F) as in matmul; rows whose id is no
// expert become zeros.  All threads call it; it passes a barrier.
template <class T, class Epi>
void expert_linear(const Team& team, const ExpertLinear<T>& p, char* scratch, Epi epi) {
  const i64 order_bytes = experts::order_size(p.rows, p.experts);
  char* own = scratch + experts::x_bytes(p.rows, p.experts, p.k) +
              team.id * (order_bytes + experts::own_bytes(p.rows));
  const experts::Order order = experts::sorted(p, own);
  experts::copy_rows(team, p, order, scratch);
  team.barrier();
  const Range mine = team.share(panels(p.n));
  const Range columns = {mine.begin * NB, least(mine.end * NB, p.n)};
  for (i64 i = 0; i < order.first[1]; ++i)
    for_lanes(columns.end - columns.begin, [&](i64 j, auto l) {
      epi(order.rows[i], columns.begin + j, l, splat(0.0f));
    });
  experts::for_chunks(p, order, scratch, [&](const experts::Chunk& c) {
    const T* w = p.w + c.expert * (packed_bytes<T>(p.n, p.k) / i64(sizeof(T)));
    if (experts::is_many<T>(c.count))
      experts::many_of(p, c, w, mine, reinterpret_cast<float*>(own + order_bytes), epi);
    else
      experts::few_of(team, p, c, w, epi);
  });
}

// The same for row-major weights, which are no params: right, and not fast.
template <class T, class Epi>
GD_NOINLINE void expert_linear_plain(const Team& team, const ExpertLinear<T>& p, Epi epi) {
  const Range mine = team.share(p.rows);
  for (i64 r = mine.begin; r < mine.end; ++r)
    for_lanes(p.n, [&](i64 column, auto l) {
      F sums = splat(0.0f);
      const bool there = p.ids[r] >= 0 && p.ids[r] < p.experts;
      for (int i = 0; there && i < lane_count(l); ++i) {
        const T* w = p.w + (p.ids[r] * p.n + column + i) * p.k;
        F products = splat(0.0f);
        for_lanes(p.k, [&](i64 k, auto m) {
          products = fma(load(p.row(r) + k, m), load(w + k, m), products);
        });
        sums[i] = sum(products);
      }
      epi(r, column, l, sums);
    });
}

}  // namespace gd
