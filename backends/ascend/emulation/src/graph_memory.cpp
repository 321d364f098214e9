#include <algorithm>
#include "graph.hpp"

namespace emulation {

namespace {

constexpr uint64_t BLOCK = 512;

struct Taken {
  uint64_t begin, end;
  int64_t last;
};

// The first free bytes among those taken, which are in order.
uint64_t first_gap(const std::vector<Taken>& taken, uint64_t bytes) {
  uint64_t begin = 0;
  for (const Taken& one : taken) {
    if (begin + bytes <= one.begin) return begin;
    begin = std::max(begin, one.end);
  }
  return begin;
}

void insert(std::vector<Taken>& taken, const Taken& one) {
  auto at = taken.begin();
  while (at != taken.end() && at->begin < one.begin) ++at;
  taken.insert(at, one);
}

}  // namespace

std::vector<Life> lives_of(const atb::GraphParam& param) {
  const uint32_t inputs = param.inTensorNum, internals = inputs + param.outTensorNum;
  const auto after = static_cast<int64_t>(param.nodes.size());
  std::vector<Life> lives(internals + param.internalTensorNum);
  for (int64_t i = 0; i < after; ++i) {
    const atb::Node& node = param.nodes[static_cast<size_t>(i)];
    for (uint32_t id : node.inTensorIds) lives[id].last = i;
    for (uint32_t id : node.outTensorIds) {
      if (id >= inputs && lives[id].first < 0) lives[id].first = i;
      lives[id].last = i;
    }
  }
  for (uint32_t id = inputs; id < internals; ++id) lives[id].last = after;
  return lives;
}

Places place(const atb::GraphParam& param, const std::vector<Life>& lives,
             const std::vector<atb::TensorDesc>& descs) {
  const uint32_t internals = param.inTensorNum + param.outTensorNum;
  Places places;
  places.offsets.resize(param.internalTensorNum);
  std::vector<uint32_t> order(param.internalTensorNum);
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](uint32_t one, uint32_t other) {
    return lives[internals + one].first < lives[internals + other].first;
  });
  std::vector<Taken> taken;
  for (uint32_t i : order) {
    const Life& life = lives[internals + i];
    taken.erase(std::remove_if(taken.begin(), taken.end(),
                               [&](const Taken& one) { return one.last < life.first; }),
                taken.end());
    const uint64_t bytes =
        (atb::Utils::GetTensorSize(descs[internals + i]) + BLOCK - 1) / BLOCK * BLOCK;
    const uint64_t begin = first_gap(taken, bytes);
    insert(taken, {begin, begin + bytes, life.last});
    places.offsets[i] = begin;
    places.bytes = std::max(places.bytes, begin + bytes);
  }
  return places;
}

}  // namespace emulation
