// Runs the tests that are named, or all of them.
#include "core.hpp"

int main(int count, char** names) {
  for (const auto& [name, test] : core::tests()) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted = wanted || name == names[i];
    if (wanted) test();
  }
  return core::failures == 0 ? 0 : 1;
}
