// One step of a generated library, linked with it, on tensors from a file: what a checker sees of it
// without Python. recorded_call FILE THREADS writes the tensors as they are then to FILE.after.
//
// FILE: i64 count of dims, the dims, i64 count of tensors, and of each its i64 bytes and content.
#include <stdio.h>
#include <stdlib.h>
#include <memory>
#include <string>
#include <vector>
#include "abi.h"

static int64_t number(FILE* file) {
  int64_t n = 0;
  if (fread(&n, sizeof(n), 1, file) != 1) abort();
  return n;
}

struct Free {
  void operator()(void* p) const { free(p); }
};
using Memory = std::unique_ptr<void, Free>;

static Memory aligned(int64_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, size_t(bytes ? bytes : 1)) != 0) abort();
  return Memory(p);
}

int main(int, char** arguments) {
  FILE* const file = fopen(arguments[1], "rb");
  if (!file) abort();
  std::vector<int64_t> dims(size_t(number(file)));
  for (int64_t& dim : dims) dim = number(file);
  std::vector<int64_t> sizes(size_t(number(file)));
  std::vector<Memory> tensors;
  std::vector<void*> pointers;
  for (int64_t& size : sizes) {
    size = number(file);
    tensors.push_back(aligned(size));
    pointers.push_back(tensors.back().get());
    if (fread(pointers.back(), 1, size_t(size), file) != size_t(size)) abort();
  }
  fclose(file);
  const int threads = atoi(arguments[2]);
  const Memory workspace = aligned(gdsl_workspace_bytes(dims.data(), threads));
  gdsl_plan* plan = nullptr;
  if (gdsl_plan_create(pointers.data(), dims.data(), threads, workspace.get(), &plan) != 0 ||
      gdsl_step(plan, nullptr) != 0) {
    fprintf(stderr, "%s\n", gdsl_last_error());
    return 1;
  }
  gdsl_plan_destroy(plan);
  FILE* const after = fopen((std::string(arguments[1]) + ".after").c_str(), "wb");
  if (!after) abort();
  for (size_t i = 0; i < sizes.size(); ++i) fwrite(pointers[i], 1, size_t(sizes[i]), after);
  return fclose(after);
}
