// Where the buffers of a plan lie in one workspace, decided when sizes are known.
#pragma once
#include <stdlib.h>
#include "types.hpp"

namespace gd {

// A buffer lives from clock `start` to clock `end`, both included.
struct Live {
  i64 bytes, start, end;
};

namespace workspace {

GD_INLINE bool overlap(const Live& a, const Live& b) {
  return a.start <= b.end && b.start <= a.end;
}

// Sorts the indices by a key, largest first, equal keys by index: insertion, since plans have few
// buffers.
template <class Key> void order_by(int* order, int n, Key key) {
  for (int i = 0; i < n; ++i) {
    int at = i;
    for (; at > 0 && key(order[at - 1]) < key(i); --at) order[at] = order[at - 1];
    order[at] = i;
  }
}

// The smallest gap between living neighbours that holds `size`, else the end of the last.  `placed`
// is sorted by offset.
inline i64 best_gap(const Live* live, const i64* offsets, const int* placed, int count, int item,
                    i64 size) {
  i64 free_from = 0, best = -1, best_size = 0;
  for (int j = 0; j < count; ++j) {
    const int other = placed[j];
    if (!overlap(live[other], live[item])) continue;
    const i64 gap = offsets[other] - free_from;
    if (gap >= size && (best < 0 || gap < best_size)) {
      best = free_from;
      best_size = gap;
    }
    free_from = most(free_from, round_up(offsets[other] + live[other].bytes, 64));
  }
  return best < 0 ? free_from : best;
}

// The bytes needed when buffers are placed in this order, and the place in the order of the one
// that ends highest.
inline i64 place_in_order(const Live* live, int n, const int* order, int* placed, i64* offsets,
                          int& highest) {
  i64 peak = 0;
  int count = 0;
  for (int i = 0; i < n; ++i) {
    const int item = order[i];
    const i64 size = round_up(live[item].bytes, 64);
    offsets[item] = 0;
    if (size == 0) continue;
    offsets[item] = best_gap(live, offsets, placed, count, item, size);
    if (offsets[item] + size > peak) {
      peak = offsets[item] + size;
      highest = i;
    }
    int at = count++;
    for (; at > 0 && offsets[placed[at - 1]] > offsets[item]; --at) placed[at] = placed[at - 1];
    placed[at] = item;
  }
  return peak;
}

inline void move_to_front(int* order, int at) {
  const int item = order[at];
  for (; at > 0; --at) order[at] = order[at - 1];
  order[0] = item;
}

}  // namespace workspace

// No placement can need less: the largest sum of living bytes at any clock.
inline i64 lower_bound(const Live* live, int n) {
  i64 bound = 0;
  for (int i = 0; i < n; ++i) {
    i64 bytes = 0;
    for (int j = 0; j < n; ++j)
      if (live[j].start <= live[i].start && live[i].start <= live[j].end) bytes += live[j].bytes;
    bound = most(bound, bytes);
  }
  return bound;
}

// 64-byte aligned offsets such that no two living buffers touch; returns the bytes needed.  Tries
// largest first, largest area first and longest first, and then again and again with the buffer
// that ended highest placed before all others, until 2 % of the bound are left; keeps the
// smallest.  The result depends on the input alone.
inline i64 place(const Live* live, int n, i64* offsets) {
  if (n == 0) return 0;
  constexpr int tries = 32;
  int* order = static_cast<int*>(malloc(sizeof(int) * 2 * size_t(n)));
  i64* trial = static_cast<i64*>(malloc(sizeof(i64) * size_t(n)));
  const i64 bound = lower_bound(live, n), enough = bound + bound / 50;
  i64 best = -1;
  int highest = 0;
  for (int way = 0; way < 2 + tries && (way < 3 || best > enough); ++way) {
    if (way < 3)
      workspace::order_by(order, n, [&](int i) {
        const i64 length = live[i].end - live[i].start + 1;
        return way == 0 ? live[i].bytes : way == 1 ? live[i].bytes * length : length;
      });
    else
      workspace::move_to_front(order, highest);
    const i64 peak = workspace::place_in_order(live, n, order, order + n, trial, highest);
    if (best >= 0 && peak >= best) continue;
    best = peak;
    for (int i = 0; i < n; ++i) offsets[i] = trial[i];
  }
  free(trial);
  free(order);
  return best;
}

}  // namespace gd
