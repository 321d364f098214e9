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
    {"AllReduce", ALL, "f16 bf16 f32", "x T nd; y T nd"},
    {"LinearParallel", B910, "f16 bf16", "x T nd; weight T nd; y T nd"},
};

struct Kind {
  std::string name;
  std::vector<aclDataType> dtypes;
  std::vector<aclFormat> formats;
};

using Combination = std::vector<Kind>;

// A tensor of a call, and what the table calls it.
struct Named {
  const char* what;
  size_t index;
  const char* name;
  const TensorDesc* desc;
};

std::vector<std::string> words(const std::string& line, char separator) {
  std::vector<std::string> found;
  std::istringstream stream(line);
  for (std::string word; std::getline(stream, word, separator);)
    if (!word.empty()) found.push_back(word);
  return found;
}

// Those of `all` that a list like f16|f32 names.
template <class T>
std::vector<T> listed(const std::string& names, std::initializer_list<T> all) {
  std::vector<T> found;
  for (const std::string& name : words(names, '|'))
    for (T one : all)
      if (name_of(one) == name) found.push_back(one);
  return found;
}

// The row with T as a type.
Combination combination(const Row& row, const std::string& type) {
  Combination made;
  for (const std::string& tensor : words(row.tensors, ';')) {
    const std::vector<std::string> parts = words(tensor, ' ');
    made.push_back({parts.at(0),
                    listed(parts.at(1) == "T" ? type : parts.at(1),
                           {ACL_FLOAT, ACL_FLOAT16, ACL_BF16, ACL_INT8, ACL_INT32, ACL_UINT32,
                            ACL_INT64}),
                    listed(parts.at(2), {ACL_FORMAT_ND, ACL_FORMAT_FRACTAL_NZ})});
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

template <class T> bool has(const std::vector<T>& list, const T& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

const Kind* kind_of(const Combination& combination, const char* name) {
  for (const Kind& kind : combination)
    if (kind.name == name) return &kind;
  return nullptr;
}

// The first tensor that does not fit, or all.size().
size_t first_misfit(const Combination& combination, const std::vector<Named>& all) {
  for (size_t i = 0; i < all.size(); ++i) {
    const Kind* kind = kind_of(combination, all[i].name);
    if (kind == nullptr || !has(kind->dtypes, all[i].desc->dtype) ||
        !has(kind->formats, all[i].desc->format))
      return i;
  }
  return all.size();
}

std::vector<Named> name_all(const Signature& signature, const Descs& in, const Descs* out) {
  std::vector<Named> all;
  for (size_t i = 0; i < in.size(); ++i)
    all.push_back({"input ", i, signature.inputs[i].name, &in[i]});
  for (size_t i = 0; out != nullptr && i < out->size(); ++i)
    all.push_back({"output ", i, signature.outputs[i].name, &(*out)[i]});
  return all;
}

template <class T> std::string joined(const std::vector<T>& list) {
  std::string made;
  for (size_t i = 0; i < list.size(); ++i)
    if (std::find(list.begin(), list.begin() + i, list[i]) == list.begin() + i)
      made += (made.empty() ? "" : "|") + name_of(list[i]);
  return made;
}

// What the combinations that agree up to a tensor take for it.
std::string wanted(const std::vector<Combination>& rows, const std::vector<Named>& all,
                   size_t misfit) {
  std::vector<aclDataType> dtypes;
  std::vector<aclFormat> formats;
  for (const Combination& row : rows) {
    const Kind* kind = kind_of(row, all[misfit].name);
    if (first_misfit(row, all) != misfit || kind == nullptr) continue;
    dtypes.insert(dtypes.end(), kind->dtypes.begin(), kind->dtypes.end());
    formats.insert(formats.end(), kind->formats.begin(), kind->formats.end());
  }
  return joined(dtypes) + " " + joined(formats);
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
  for (const Combination& row : rows) {
    misfit = std::max(misfit, first_misfit(row, all));
    if (misfit == all.size()) return atb::NO_ERROR;
  }
  const Named& bad = all[misfit];
  return fail(atb::ERROR_INVALID_TENSOR_INI_MATCH,
              bad.what + std::to_string(bad.index) + " (" + bad.name + ") is " +
                  name_of(bad.desc->dtype) + " " + name_of(bad.desc->format) + "; " +
                  signature.table + " on the " + soc + " takes " + wanted(rows, all, misfit) +
                  " here");
}

}  // namespace emulation
