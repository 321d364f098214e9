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

inline i64 place_in_order(const Live* live, int n, const int* order, int* placed, i64* offsets) {
  i64 peak = 0;
  int count = 0;
  for (int i = 0; i < n; ++i) {
    const int item = order[i];
    const i64 size = round_up(live[item].bytes, 64);
    offsets[item] = 0;
    if (size == 0) continue;
    offsets[item] = best_gap(live, offsets, placed, count, item, size);
    peak = most(peak, offsets[item] + size);
    int at = count++;
    for (; at > 0 && offsets[placed[at - 1]] > offsets[item]; --at) placed[at] = placed[at - 1];
    placed[at] = item;
  }
  return peak;
}

}  // namespace workspace

// 64-byte aligned offsets such that no two living buffers touch; returns the bytes needed.  Tries
// largest first, longest first and largest area first and keeps the smallest, so the result depends
// on the input alone.
inline i64 place(const Live* live, int n, i64* offsets) {
  if (n == 0) return 0;
  int* order = static_cast<int*>(malloc(sizeof(int) * 2 * size_t(n)));
  i64* trial = static_cast<i64*>(malloc(sizeof(i64) * size_t(n)));
  i64 best = -1;
  for (int way = 0; way < 3; ++way) {
    workspace::order_by(order, n, [&](int i) {
      const i64 length = live[i].end - live[i].start + 1;
      return way == 0 ? live[i].bytes : way == 1 ? length : live[i].bytes * length;
    });
    const i64 peak = workspace::place_in_order(live, n, order, order + n, trial);
    if (best >= 0 && peak >= best) continue;
    best = peak;
    for (int i = 0; i < n; ++i) offsets[i] = trial[i];
  }
  free(trial);
  free(order);
  return best;
}

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

}  // namespace gd
