// What Python tells torch.classes.graphdsl.Operation of a build: the tensors that it takes and gives,
// its dims and the checks of block tables, as numbers and texts that are read front to back.
#pragma once
#include <ATen/core/ATen_fwd.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace graphdsl {

using Dims = std::vector<std::int64_t>;
constexpr std::int64_t unknown = -1;

// A constant and a multiple of some dims.
struct Extent {
  std::vector<std::pair<std::size_t, std::int64_t>> terms;
  std::int64_t constant = 0;

  std::int64_t value(const Dims& dims) const {
    std::int64_t total = constant;
    for (const auto& [dim, factor] : terms) total += factor * dims[dim];
    return total;
  }
  // Settles the one dim that is not known yet.
  void settle(std::int64_t size, Dims& dims) const {
    std::size_t open = 0, which = 0;
    std::int64_t rest = constant, by = 1;
    for (const auto& [dim, factor] : terms) {
      if (dims[dim] != unknown) {
        rest += factor * dims[dim];
      } else {
        ++open;
        which = dim;
        by = factor;
      }
    }
    if (open == 1) dims[which] = (size - rest) / by;
  }
};

struct Port {
  std::string name, wanted;
  at::ScalarType type = at::kFloat;
  std::vector<Extent> shape;
  std::vector<std::pair<Extent, Extent>> ranges;

  std::vector<std::int64_t> sizes(const Dims& dims) const {
    std::vector<std::int64_t> found;
    for (const Extent& extent : shape) found.push_back(extent.value(dims));
    return found;
  }
};

// A dim, from `low` to `high`, whose last step may reach beyond that.  One that equals something is
// no size of a tensor.
struct Bound {
  std::string name, wanted;
  std::int64_t low, high, step;
  bool derived;
  Extent equals;
};

// Of every sequence, the pages up to its last position have to be in the block table; without
// positions (-1) all of them.  Both count the inputs and states.
struct PageCheck {
  std::int64_t positions, table, block;
};

// The numbers and texts in which Python hands over a manifest, read front to back.
class Reader {
 public:
  Reader(const std::vector<std::int64_t>& numbers, const std::vector<std::string>& texts)
      : numbers_(numbers), texts_(texts) {}
  std::int64_t number() { return numbers_.at(number_++); }
  std::string text() { return texts_.at(text_++); }
  Extent extent() {
    Extent made;
    for (auto left = number(); left > 0; --left) {
      const auto dim = static_cast<std::size_t>(number());
      made.terms.emplace_back(dim, number());
    }
    made.constant = number();
    return made;
  }
  Port port() {
    static const std::map<std::string, at::ScalarType> types = {
        {"f32", at::kFloat}, {"bf16", at::kBFloat16}, {"f16", at::kHalf},
        {"f64", at::kDouble}, {"i32", at::kInt}, {"bool", at::kBool}, {"int8", at::kChar}};
    Port made;
    made.name = text();
    made.wanted = text();
    made.type = types.at(text());
    for (auto left = number(); left > 0; --left) made.shape.push_back(extent());
    for (auto left = number(); left > 0; --left) {
      Extent low = extent();
      made.ranges.emplace_back(std::move(low), extent());
    }
    return made;
  }
  std::vector<Port> ports() {
    std::vector<Port> made;
    for (auto left = number(); left > 0; --left) made.push_back(port());
    return made;
  }
  std::vector<Bound> bounds() {
    std::vector<Bound> made;
    for (auto left = number(); left > 0; --left) {
      Bound bound{text(), text(), number(), number(), number(), number() != 0, {}};
      if (bound.derived) bound.equals = extent();
      made.push_back(std::move(bound));
    }
    return made;
  }
  std::vector<PageCheck> page_checks() {
    std::vector<PageCheck> made;
    for (auto left = number(); left > 0; --left) made.push_back({number(), number(), number()});
    return made;
  }

 private:
  const std::vector<std::int64_t>& numbers_;
  const std::vector<std::string>& texts_;
  std::size_t number_ = 0, text_ = 0;
};

}  // namespace graphdsl
