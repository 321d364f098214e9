// Collectives: one thread of the team calls what the process has set.
#pragma once
#include "abi.h"
#include "team.hpp"
#include "types.hpp"

namespace gd {

// Of one plan. After a failure the rest of the step calls nothing more.
struct Exchange {
  gdsl_exchanger run;
  void* context;
  bool failed;

  // Everything that is given is there before, and what is got is read after a barrier: those are
  // the caller's.
  void operator()(const Team& team, const gdsl_exchange& what) {
    if (team.id == 0 && !failed) failed = !run || run(context, &what) != 0;
  }
};

template <class T> constexpr int exchanged_dtype = GDSL_F32;
template <> constexpr inline int exchanged_dtype<bf16> = GDSL_BF16;

// The sum of every rank's x; y may be x.
template <class T> void all_reduce(const Team& team, Exchange& with, const T* x, T* y, i64 count) {
  with(team, {GDSL_SUM, exchanged_dtype<T>, x, y, 1, count});
}
// Rows of `inner` of every rank side by side.
template <class T>
void all_gather(const Team& team, Exchange& with, const T* x, T* y, i64 outer, i64 inner) {
  with(team, {GDSL_GATHER, exchanged_dtype<T>, x, y, outer, inner});
}

}  // namespace gd
