// Small tensors that are computed on the host from positions, ids and the block table.
#pragma once
#include <algorithm>

#include "tensors.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

enum class Kind {
  slots, lengths, offsets, contexts, blocks, layer, ids, angles, picked, triangle, mask
};

struct PreparedSpec {
  Kind kind;
  uint32_t tensor;
  std::vector<uint32_t> of;  // tensors of the program that lie on the host
  int64_t block;
  int64_t window;
  int64_t limit;  // ids are below it; 0: any
};

// An input or the block table, on the host.
struct HostInput {
  const TensorSpec* spec;
  const void* data;

  const int32_t* values() const { return static_cast<const int32_t*>(data); }
  const bool* flags() const { return static_cast<const bool*>(data); }
};

// The call as the host sees it: rows are `tokens` for each of `sequences`, one after another.
struct Call {
  int64_t sequences;
  int64_t tokens;
};

using Numbers = std::vector<int32_t>;

// Where every token goes in a paged cache; -1 for padding.
inline Numbers Slots(const HostInput& positions, const HostInput& table, int64_t block, Call call) {
  Numbers slots(static_cast<size_t>(call.sequences * call.tokens), -1);
  const int64_t pages = table.spec->shape[1];
  for (size_t row = 0; row < slots.size(); ++row) {
    const int64_t position = positions.values()[row];
    if (position < 0) continue;
    const int64_t sequence = static_cast<int64_t>(row) / call.tokens;
    const int64_t page = position / block;
    const int32_t number = page < pages ? table.values()[sequence * pages + page] : -1;
    if (number < 0) {
      throw Error(std::string(positions.spec->name) + " of sequence " + std::to_string(sequence) +
                  " holds " + std::to_string(position) + ", but " + table.spec->name +
                  " has no block for its page " + std::to_string(page) + " of " +
                  std::to_string(pages) + " pages of " + std::to_string(block) + " slots");
    }
    slots[row] = static_cast<int32_t>(number * block + position % block);
  }
  return slots;
}

// FA's tokenOffset: past and new tokens of every sequence, none of which is padding.
inline Numbers Offsets(const HostInput& positions, Call call) {
  Numbers offsets;
  for (int64_t s = 0; s < call.sequences; ++s) {
    offsets.push_back(positions.values()[(s + 1) * call.tokens - 1] + 1);
  }
  return offsets;
}

// The keys that every row sees in PagedAttention. A row of padding sees one, as none is refused;
// what comes out means nothing.
inline Numbers Contexts(const HostInput& positions, int64_t rows) {
  Numbers contexts(positions.values(), positions.values() + rows);
  for (int32_t& context : contexts) context = context < 0 ? 1 : context + 1;
  return contexts;
}

// The block table with a row for every query. Pages without a block are never read, but ATB wants
// numbers of blocks.
inline Numbers Blocks(const HostInput& table, Call call) {
  Numbers blocks;
  const int64_t pages = table.spec->shape[1];
  for (int64_t s = 0; s < call.sequences; ++s) {
    for (int64_t t = 0; t < call.tokens; ++t) {
      blocks.insert(blocks.end(), table.values() + s * pages, table.values() + (s + 1) * pages);
    }
  }
  for (int32_t& block : blocks) block = std::max(block, 0);
  return blocks;
}

inline Numbers Ids(const HostInput& ids, int64_t limit, const std::string& hint = "") {
  Numbers numbers(ids.values(), ids.values() + CountOf(*ids.spec));
  for (int32_t& id : numbers) {
    if (limit > 0 && id >= limit) {
      throw Error(std::string(ids.spec->name) + " holds " + std::to_string(id) +
                  ", but a table that it is looked up in has " + std::to_string(limit) +
                  " rows, so that it ends at " + std::to_string(limit - 1) + hint);
    }
    id = std::max(id, 0);
  }
  return numbers;
}

// Rows are counted in their sequence; ATB's Gather counts them among all.
inline Numbers Picked(const HostInput& rows, Call call) {
  Numbers picked(rows.values(), rows.values() + CountOf(*rows.spec));
  const size_t each = std::max<size_t>(picked.size() / static_cast<size_t>(call.sequences), 1);
  for (size_t i = 0; i < picked.size(); ++i) {
    picked[i] += static_cast<int32_t>(static_cast<int64_t>(i / each) * call.tokens);
  }
  return picked;
}

// What hides a key. ATB adds an f16 mask to the scores; one of bf16 it multiplies with -3e38 first.
inline uint16_t Hidden(aclDataType dtype) {
  constexpr uint16_t kMinus10000InF16 = 0xF0E2;
  constexpr uint16_t kOneInBf16 = 0x3F80;
  return dtype == ACL_BF16 ? kOneInBf16 : kMinus10000InF16;
}

// A mask of `spec`'s shape, [..., rows, keys] or in tiles [..., keys / 16, rows, 16]:
// `seen(matrix, row, key)` says what is not hidden.
template <class Seen>
std::vector<uint16_t> Mask(const TensorSpec& spec, Seen seen) {
  const bool tiled = spec.format == ACL_FORMAT_FRACTAL_NZ;
  const size_t rank = spec.shape.size();
  const int64_t width = spec.shape[rank - 1], rows = spec.shape[rank - 2];
  const int64_t tiles = tiled ? spec.shape[rank - 3] : 1;
  const int64_t each = width * rows * tiles;
  std::vector<uint16_t> mask(static_cast<size_t>(CountOf(spec)), Hidden(spec.dtype));
  auto at = mask.begin();
  for (int64_t matrix = 0; matrix < CountOf(spec) / each; ++matrix) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < width; ++column, ++at) {
          if (seen(matrix, row, tile * width + column)) *at = 0;
        }
      }
    }
  }
  return mask;
}

inline std::vector<uint16_t> Triangle(const TensorSpec& spec) {
  return Mask(spec, [](int64_t, int64_t row, int64_t key) { return key <= row; });
}

// What every query sees of a contiguous cache: rows are counted from 0, not from the past. `given`
// is none, or a mask [sequences, 1, tokens, keys]: keys beyond it are not seen, but a single key
// stands for all.
inline std::vector<uint16_t> SeenKeys(const TensorSpec& spec, const HostInput& positions,
                                      const HostInput* given, int64_t window, Call call) {
  const int64_t keys = given ? given->spec->shape.back() : 0;
  return Mask(spec, [&](int64_t sequence, int64_t row, int64_t key) {
    if (row >= call.tokens) return false;
    const int64_t query = sequence * call.tokens + row;
    const int64_t position = positions.values()[query];
    if (key > position || (window != 0 && key <= position - window)) return false;
    if (!given) return true;
    return keys == 1 ? given->flags()[query] : key < keys && given->flags()[query * keys + key];
  });
}

// The values of one prepared tensor: numbers, or the bits of a mask.
struct Values {
  Numbers numbers;
  std::vector<uint16_t> bits;

  bool operator!=(const Values& other) const {
    return numbers != other.numbers || bits != other.bits;
  }
  const void* data() const {
    return numbers.empty() ? static_cast<const void*>(bits.data()) : numbers.data();
  }
  uint64_t bytes() const {
    return numbers.size() * sizeof(int32_t) + bits.size() * sizeof(uint16_t);
  }
};

inline Values Compute(const PreparedSpec& spec, const TensorSpec& tensor,
                      const std::vector<HostInput>& of, Call call) {
  const size_t count = static_cast<size_t>(CountOf(tensor));
  switch (spec.kind) {
    case Kind::slots: return {Slots(of.at(0), of.at(1), spec.block, call), {}};
    // Padding counts: its rows are computed, and mean nothing.
    case Kind::lengths: return {Numbers(count, static_cast<int32_t>(call.tokens)), {}};
    case Kind::offsets: return {Offsets(of.at(0), call), {}};
    case Kind::contexts: return {Contexts(of.at(0), tensor.shape[0]), {}};
    case Kind::blocks: return {Blocks(of.at(0), call), {}};
    case Kind::layer: return {Numbers(count, 0), {}};
    case Kind::ids: return {Ids(of.at(0), spec.limit), {}};
    case Kind::angles:
      return {Ids(of.at(0), spec.limit,
                  "\n  hint: tables of angles have as many rows as --pass angle_table:rows=N says"),
              {}};
    case Kind::picked: return {Picked(of.at(0), call), {}};
    case Kind::triangle: return {{}, Triangle(tensor)};
    case Kind::mask: {
      const HostInput* given = of.size() > 1 ? &of[1] : nullptr;
      return {{}, SeenKeys(tensor, of.at(0), given, spec.window, call)};
    }
  }
  throw Error(std::string("no such prepared tensor: ") + tensor.name);
}

}  // namespace gdsl
