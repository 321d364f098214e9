// run_team on threads of the standard library: ThreadSanitizer does not know libgomp's barriers and
// reports races where there are none.
#pragma once
#include <thread>
#include <vector>
#include "team.hpp"

namespace gd {

template <class Body> void run_team(int threads, Body body) {
  TeamState state(threads);
  std::vector<std::thread> others;
  for (int id = 1; id < threads; ++id)
    others.emplace_back([&, id] { body(Team{id, threads, &state}); });
  body(Team{0, threads < 1 ? 1 : threads, &state});
  for (std::thread& other : others) other.join();
}

}  // namespace gd
