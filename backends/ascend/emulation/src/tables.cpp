#include "tables.hpp"
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
    {"Relu", ALL, "f32 bf16", "x T nd; y T nd"},
    {"Split2", ALL, "f16 bf16 i64", "x T nd; y0 T nd; y1 T nd"},
    {"Split3", ALL, "f16 bf16", "x T nd; y0 T nd; y1 T nd; y2 T nd"},
    {"Concat", ALL, "f16 bf16", "x0 T nd; x1 T nd; y T nd"},
    {"Transpose", ALL, "f16 bf16 i8 i32 i64", "x T nd; y T nd"},
    {"Softmax", ALL, "f16 f32 bf16", "x T nd; y T nd"},
    {"Gather", ALL, "f16 bf16 f32 i32 u32 i64", "table T nd; indices i32|i64 nd; y T nd"},
};

