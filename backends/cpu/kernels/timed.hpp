// Times of calls, for builds that measure them: what thread 0 spends in each.
#pragma once
#include <time.h>
#include "team.hpp"

namespace gd {

// Of one call in one step: its time over all turns, how many they were, and how long thread 0
// waited for the others at the barrier before it.
struct CallTime {
  i64 nanoseconds, turns, waited;
};

inline i64 now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return i64(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// The call that it stands before, until the end of the block.
class Timed {
 public:
  Timed(const Team& team, CallTime& time) : time_(team.id == 0 ? &time : nullptr) {
    if (time_) begin_ = now();
  }
  ~Timed() {
    if (!time_) return;
    time_->nanoseconds += now() - begin_;
    ++time_->turns;
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  CallTime* time_;
  i64 begin_ = 0;
};

inline void timed_barrier(const Team& team, CallTime& time) {
  if (team.id != 0) return team.barrier();
  const i64 begin = now();
  team.barrier();
  time.waited += now() - begin;
}

}  // namespace gd
