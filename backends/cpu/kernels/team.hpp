// The threads of one parallel region, their shares of work and the barrier between dependent
// kernels.
#pragma once
#include <omp.h>
#include <sched.h>
#include "types.hpp"

namespace gd {

struct Range {
  i64 begin, end;
};

// What of a thread's share of some work is taken, by itself or by others: the number of the work in
// the upper half, how many items of it in the lower.
struct alignas(64) Taken {
  i64 items;
  i64 work;  // the thread's last; it alone reads this
};
constexpr int most_helpers = 128;  // threads, beyond which each does its own share alone

struct TeamState {
  alignas(64) int arrived = 0;
  alignas(64) int round = 0;
  alignas(64) i64 ticket = 0;
  Taken taken[most_helpers];

  explicit TeamState(int threads) {
    for (int i = 0; i < threads && i < most_helpers; ++i) taken[i] = {0, 0};
  }
};

GD_INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

struct Team {
  int id, count;
  TeamState* state;

  // Everybody waits for everybody; what was written before it is seen after it.
  void barrier() const {
    if (count > 1) wait();
  }
  // This thread's part of n items: contiguous, sizes differ by at most one.
  Range share(i64 n) const { return share_of(id, n); }
  // body(Range) for parts of n items, of at most `size`: first for this thread's own share, which
  // begins as it did in the last step, then for what is left of others', whose core may be busy with
  // something else. All threads call it for the same works in the same order, and a barrier
  // separates works of which one needs the other.
  template <class Body> void divide(i64 n, i64 size, Body body) const {
    const bool helped = count > 1 && count <= most_helpers;
    const i64 work = helped ? ++state->taken[id].work : 1;
    i64 alone = 0;
    for (int i = 0; i < (helped ? count : 1); ++i) {
      const int owner = (id + i) % count;
      const Range all = share_of(owner, n);
      i64& items = helped ? state->taken[owner].items : alone;
      for (Range part = take(items, work, all, size); part.begin < part.end;
           part = take(items, work, all, size))
        body(part);
    }
  }
  // Numbers 0, 1, 2, ... handed out to whoever asks; a barrier must lie between the last use and
  // reset_tickets, and between that and the first use.
  i64 take_ticket() const { return __atomic_fetch_add(&state->ticket, 1, __ATOMIC_RELAXED); }
  // The same after `last`, which is -1 at first; one thread alone needs no state for it.
  i64 next_ticket(i64 last) const { return count > 1 ? take_ticket() : last + 1; }
  void reset_tickets() const {
    if (id == 0) __atomic_store_n(&state->ticket, 0, __ATOMIC_RELAXED);
  }

 private:
  Range share_of(int thread, i64 n) const {
    const i64 each = n / count, more = n % count;
    const i64 begin = thread * each + least(thread, more);
    return {begin, begin + each + (thread < more ? 1 : 0)};
  }
  // The next items of a share, empty where none are left. Who finds an earlier work there begins
  // this one, be it the owner or another; nobody goes on to a later one before all is taken.
  GD_NOINLINE static Range take(i64& items, i64 work, Range all, i64 size) {
    i64 seen = __atomic_load_n(&items, __ATOMIC_RELAXED);
    for (;;) {
      if (seen >> 32 > work) return {all.end, all.end};
      const i64 begin = all.begin + (seen >> 32 == work ? seen & 0xffffffff : 0);
      const i64 end = least(begin + size, all.end);
      const i64 after = (work << 32) + end - all.begin;
      if (begin == end || __atomic_compare_exchange_n(&items, &seen, after, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED))
        return {begin, end};
    }
  }
  GD_NOINLINE void wait() const {
    constexpr int spins = 2000;  // tens of microseconds; then others may need the core
    const int round = __atomic_load_n(&state->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&state->arrived, 1, __ATOMIC_ACQ_REL) == count) {
      __atomic_store_n(&state->arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&state->round, round + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int i = 0; __atomic_load_n(&state->round, __ATOMIC_ACQUIRE) == round; ++i)
      if (i < spins)
        relax();
      else
        sched_yield();
  }
};

#if !defined(GD_RUN_TEAM)
// body(team) on every thread of a parallel region, which may be smaller than asked for.
template <class Body> void run_team(int threads, Body body) {
  TeamState state(threads);
  if (threads <= 1) return body(Team{0, 1, &state});
#pragma omp parallel num_threads(threads)
  body(Team{omp_get_thread_num(), omp_get_num_threads(), &state});
}
#endif

}  // namespace gd

// Other threads than OpenMP's, for checkers that do not know its runtime.
#if defined(GD_RUN_TEAM)
#include GD_RUN_TEAM
#endif
