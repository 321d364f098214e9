#include "tables.hpp"
#include <algorithm>
#include <map>
#include <sstream>

namespace emulation {

namespace {

constexpr int B910 = 1, P310 = 2, ALL = 3;

// For T each of `types`: every tensor's name, dtypes and formats.
struct Row {
  const char* table;
  int socs;
  const char* types;
  const char* tensors;
};

const Row ROWS[] = {
    {"Linear", B910, "f16 bf16", "x T nd; weight T nd|nz; y T nd"},
    {"Linear", B910, "f32", "x T nd; weight T nd; y T nd"},
    {"Linear", P310, "f16", "x T nd; weight T nd|nz; y T nd"},
    {"LinearBias", B910, "f16 bf16", "x T nd; weight T nd|nz; bias T nd; y T nd"},
    {"LinearBias", B910, "f16 bf16", "x T nd; weight T nd; bias f32 nd; y T nd"},
    {"LinearBias", P310, "f16", "x T nd; weight T nd|nz; bias T nd; y T nd"},
    {"LinearBias", P310, "f16", "x T nd; weight T nd; bias f32 nd; y T nd"},
    {"LinearAccum", B910, "f16 bf16", "x T nd; weight T nd; accum f32 nd; y f32 nd"},
    {"RmsNorm", ALL, "f16 bf16", "x T nd; gamma T nd; y T nd"},
    {"RmsNormPre", ALL, "f16 bf16",
     "x T nd; bias T nd; residual T nd; gamma T nd; y T nd; sum T nd"},
    {"RmsNormPost", ALL, "f16 bf16", "x T nd; bias T nd; residual T nd; gamma T nd; y T nd"},
    {"LayerNorm", ALL, "f16 f32 bf16", "x T nd; gamma T nd; beta T nd; y T nd"},
    {"Rope", ALL, "f16 bf16",
     "query T nd; key T nd; cos T nd; sin T nd; seqLen i32|u32 nd; queryOut T nd; keyOut T nd"},
    {"Rope", ALL, "f16",
     "query T nd; key T nd; cos f32 nd; sin f32 nd; seqLen i32|u32 nd; queryOut T nd; keyOut T nd"},
    {"SelfAttention", B910, "f16 bf16",
     "query T nd; key T nd; value T nd; keyCache T nd; valueCache T nd; mask T nd|nz; "
     "tokenOffset i32 nd; seqLen i32 nd; layerId i32 nd; output T nd"},
    {"SelfAttention", P310, "f16 bf16",
     "query T nd; key T nd; value T nd; keyCache T nz; valueCache T nz; mask T nd|nz; "
     "tokenOffset i32 nd; seqLen i32 nd; layerId i32 nd; output T nd"},
    {"PagedAttention", B910, "f16 bf16",
     "query T nd; keyCache T nd; valueCache T nd; blockTables i32 nd; contextLens i32 nd; "
     "mask T nd|nz; output T nd"},
    {"PagedAttention", P310, "f16 bf16",
     "query T nd; keyCache T nz; valueCache T nz; blockTables i32 nd; contextLens i32 nd; "
     "mask T nd|nz; output T nd"},
    {"ReshapeAndCache", B910, "f16 bf16 i8",
     "key T nd; value T nd; keyCache T nd; valueCache T nd; slots i32 nd; keyCacheOut T nd; "
     "valueCacheOut T nd"},
    {"ReshapeAndCache", P310, "f16 bf16 i8",
     "key T nd; value T nd; keyCache T nz; valueCache T nz; slots i32 nd; keyCacheOut T nz; "
     "valueCacheOut T nz"},
    {"ReshapeAndCacheNz", B910, "f16 bf16 i8",
     "key T nd; value T nd; keyCache T nz; valueCache T nz; slots i32 nd; keyCacheOut T nz; "
     "valueCacheOut T nz"},
    {"KvCache", ALL, "f16 i8",
     "newKv T nd|nz; layerId i32 nd; past T nd|nz; tokenOffset i32 nd; seqLen i32 nd"},
    {"Cast", ALL, "f16 bf16", "x T nd; y f32 nd"},
    {"Cast", ALL, "f16 bf16", "x f32 nd; y T nd"},
    {"Cast", ALL, "i32", "x T nd; y i64 nd"},
    {"Cast", ALL, "i64", "x T nd; y i32 nd"},
    {"Muls", ALL, "f16 f32 bf16", "x T nd; y T nd"},
    {"Cos", ALL, "f16 f32 bf16", "x T nd; y T nd"},
    {"Sin", ALL, "f16 f32 bf16", "x T nd; y T nd"},
    {"Neg", ALL, "f16 bf16", "x T nd; y T nd"},
    {"Tanh", ALL, "f16 bf16", "x T nd; y T nd"},
    {"Add", ALL, "f16 f32 bf16 i32 i64", "x T nd; other T nd; y T nd"},
    {"Mul", ALL, "f16 bf16", "x T nd; other T nd; y T nd"},
    {"Sub", ALL, "f16 i64 bf16", "x T nd; other T nd; y T nd"},
    {"RealDiv", ALL, "f16 f32 bf16", "x T nd; other T nd; y T nd"},
    {"Swish", ALL, "f16 bf16", "x T nd; y T nd"},
    {"FastGelu", ALL, "f16 bf16", "x T nd; y T nd"},
    {"Gelu", ALL, "f16 f32 bf16", "x T nd; y T nd"},
    {"Swiglu", ALL, "f16 f32 bf16", "x T nd; y T nd"},
    {"Sigmoid", ALL, "f16 bf16", "x T nd; y T nd"},
    {"Relu", ALL, "f32 bf16", "x T nd; y T nd"},
    {"Split2", ALL, "f16 bf16 i64", "x T nd; y0 T nd; y1 T nd"},
    {"Split3", ALL, "f16 bf16", "x T nd; y0 T nd; y1 T nd; y2 T nd"},
    {"Concat", ALL, "f16 bf16", "x0 T nd; x1 T nd; y T nd"},
    {"Transpose", ALL, "f16 bf16 i8 i32 i64", "x T nd; y T nd"},
    {"Slice", ALL, "f16 bf16", "x T nd; y T nd"},
    {"ToNz", ALL, "f16 bf16", "x T nd; y T nz"},
    {"ToNd", ALL, "f16 bf16", "x T nz; y T nd"},
    {"Softmax", ALL, "f16 f32 bf16", "x T nd; y T nd"},
    {"Gather", ALL, "f16 bf16 f32 i32 u32 i64", "table T nd; indices i32|i64 nd; y T nd"},
};

struct Kind {
  std::vector<std::string> dtypes, formats;
};

using Combination = std::map<std::string, Kind>;

std::vector<std::string> words(const std::string& line, char separator) {
  std::vector<std::string> found;
  std::istringstream stream(line);
  for (std::string word; std::getline(stream, word, separator);)
    if (!word.empty()) found.push_back(word);
  return found;
}

// The row with T as a type.
Combination combination(const Row& row, const std::string& type) {
  Combination made;
  for (const std::string& tensor : words(row.tensors, ';')) {
    const std::vector<std::string> parts = words(tensor, ' ');
    made[parts.at(0)] = {parts.at(1) == "T" ? std::vector<std::string>{type}
                                            : words(parts.at(1), '|'),
                         words(parts.at(2), '|')};
  }
  return made;
}

std::map<std::string, std::vector<Combination>> read_tables(int soc) {
  std::map<std::string, std::vector<Combination>> made;
  for (const Row& row : ROWS)
    if ((row.socs & soc) != 0)
      for (const std::string& type : words(row.types, ' '))
        made[row.table].push_back(combination(row, type));
  return made;
}

const std::vector<Combination>& combinations(const std::string& table) {
  static const auto on_910b = read_tables(B910);
  static const auto on_310p = read_tables(P310);
  static const std::vector<Combination> none;
  const auto& tables = is_310p() ? on_310p : on_910b;
  const auto found = tables.find(table);
  return found == tables.end() ? none : found->second;
}

bool has(const std::vector<std::string>& list, const std::string& word) {
  for (const std::string& item : list)
    if (item == word) return true;
  return false;
}

bool fits(const Combination& combination, const std::string& name, const TensorDesc& desc) {
  const auto kind = combination.find(name);
  return kind != combination.end() && has(kind->second.dtypes, name_of(desc.dtype)) &&
         has(kind->second.formats, name_of(desc.format));
}

struct Named {
  std::string what, name;
  TensorDesc desc;
};

std::vector<Named> name_all(const Signature& signature, const Descs& in, const Descs* out) {
  std::vector<Named> all;
  for (size_t i = 0; i < in.size(); ++i)
    all.push_back({"input " + std::to_string(i), signature.inputs[i].name, in[i]});
  for (size_t i = 0; out != nullptr && i < out->size(); ++i)
    all.push_back({"output " + std::to_string(i), signature.outputs[i].name, (*out)[i]});
  return all;
}

// The first tensor that does not fit, or all.size().
size_t first_misfit(const Combination& combination, const std::vector<Named>& all) {
  size_t i = 0;
  while (i < all.size() && fits(combination, all[i].name, all[i].desc)) ++i;
  return i;
}

void add_word(std::string& list, const std::string& word) {
  if (!has(words(list, '|'), word)) list += (list.empty() ? "" : "|") + word;
}

// What the combinations that agree up to a tensor take for it.
std::string wanted(const std::vector<Combination>& rows, const std::vector<Named>& all,
                   size_t misfit) {
  std::string dtypes, formats;
  for (const Combination& row : rows) {
    const auto kind = row.find(all[misfit].name);
    if (first_misfit(row, all) != misfit || kind == row.end()) continue;
    for (const std::string& dtype : kind->second.dtypes) add_word(dtypes, dtype);
    for (const std::string& format : kind->second.formats) add_word(formats, format);
  }
  return dtypes + " " + formats;
}

}  // namespace

Status check_table(const Signature& signature, const Descs& in, const Descs* out) {
  const std::vector<Combination>& rows = combinations(signature.table);
  const std::string soc = is_310p() ? "310P" : "910B";
  if (rows.empty())
    return fail(atb::ERROR_INVALID_TENSOR_INI_MATCH,
                std::string("there is no ") + signature.table + " on the " + soc);
  const std::vector<Named> all = name_all(signature, in, out);
  size_t misfit = 0;
  for (const Combination& row : rows) misfit = std::max(misfit, first_misfit(row, all));
  if (misfit == all.size()) return atb::NO_ERROR;
  const Named& bad = all[misfit];
  return fail(atb::ERROR_INVALID_TENSOR_INI_MATCH,
              bad.what + " (" + bad.name + ") is " + name_of(bad.desc.dtype) + " " +
                  name_of(bad.desc.format) + "; " + signature.table + " on the " + soc +
                  " takes " + wanted(rows, all, misfit) + " here");
}

}  // namespace emulation
