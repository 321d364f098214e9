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

struct TeamState {
  alignas(64) int arrived = 0;
  alignas(64) int round = 0;
  alignas(64) i64 ticket = 0;
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
  Range share(i64 n) const {
    const i64 each = n / count, more = n % count;
    const i64 begin = id * each + least(id, more);
    return {begin, begin + each + (id < more ? 1 : 0)};
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
  TeamState state;
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
