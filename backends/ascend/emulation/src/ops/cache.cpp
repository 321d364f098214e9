// ReshapeAndCache (paged) and KvCache (contiguous): new keys and values go into a cache.
#include "cache.hpp"
#include <unordered_map>

namespace emulation::cache {

namespace {

using atb::infer::KvCacheParam;
using atb::infer::ReshapeAndCacheParam;

class ReshapeAndCache : public SingleOperation {
 public:
  explicit ReshapeAndCache(const ReshapeAndCacheParam& param)
      : SingleOperation("ReshapeAndCacheOperation",
                        {param.kvCacheCfg == ReshapeAndCacheParam::K_CACHE_V_CACHE_NZ
                             ? "ReshapeAndCacheNz"
                             : "ReshapeAndCache",
                         {{"key"}, {"value"}, {"keyCache"}, {"valueCache"}, {"slots"}},
                         {{"keyCacheOut", {2}, true}, {"valueCacheOut", {3}, true}}}) {}

  static Status Check(const ReshapeAndCacheParam& param) {
    if (param.compressType != ReshapeAndCacheParam::COMPRESS_TYPE_UNDEFINED)
      return bad_param("compressType is set; the emulation does not compress");
    if (param.kvCacheCfg != ReshapeAndCacheParam::K_CACHE_V_CACHE &&
        param.kvCacheCfg != ReshapeAndCacheParam::K_CACHE_V_CACHE_NZ)
      return bad_param("kvCacheCfg is " + to_string(int(param.kvCacheCfg)) +
                       ", wanted K_CACHE_V_CACHE or K_CACHE_V_CACHE_NZ");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    Paged keys{}, values{};
    Status status = CheckNew("key", in[0], "keyCache", in[2], keys);
    if (status == atb::NO_ERROR) status = CheckNew("value", in[1], "valueCache", in[3], values);
    if (status != atb::NO_ERROR) return status;
    if (dim(in[1], 0) != dim(in[0], 0) || dim(in[1], 1) != dim(in[0], 1))
      return bad_dim("value", in[1], "the tokens and heads of key " + text(in[0]));
    if (keys.blocks != values.blocks || keys.block != values.block)
      return bad_dim("valueCache", in[3], "the blocks of keyCache " + text(in[2]));
    if (!is(in[4], {dim(in[0], 0)}))
      return bad_dim("slots", in[4], "[" + to_string(dim(in[0], 0)) + "], one for every token");
    out[0] = in[2];
    out[1] = in[3];
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const Status status = CheckSlots(pack);
    if (status != atb::NO_ERROR) return status;
    for (size_t i = 0; i < 2; ++i) {
      if (desc_in(pack, i).dtype == ACL_INT8)
        Write<int8_t>(pack, i);
      else
        Write<uint16_t>(pack, i);
    }
    return atb::NO_ERROR;
  }

 private:
  static Status CheckNew(const char* name, const TensorDesc& rows, const char* cache_name,
                         const TensorDesc& cache, Paged& paged) {
    if (rank(rows) != 3) return bad_rank(name, rows, "3 dims [tokens, heads, dim]");
    if (is_nz(cache) && cache.dtype == ACL_INT8)
      return fail(atb::ERROR_INVALID_TENSOR_INI_MATCH,
                  std::string(cache_name) + " is i8 nz; the emulation has NZ for f16 and bf16");
    return read_paged(cache_name, cache, dim(rows, 1), dim(rows, 2), paged);
  }

  static Paged Cache(const TensorDesc& rows, const TensorDesc& cache) {
    Paged paged{};
    read_paged("", cache, dim(rows, 1), dim(rows, 2), paged);
    return paged;
  }

  // A slot that is there, and that no other token has; negative ones stand for nothing.
  static Status CheckSlots(const atb::VariantPack& pack) {
    const int64_t count = Cache(desc_in(pack, 0), desc_in(pack, 2)).slots();
    const auto* slots = data_in<int32_t>(pack, 4);
    std::unordered_map<int32_t, int64_t> taken;
    for (int64_t i = 0; i < dim(desc_in(pack, 4), 0); ++i) {
      if (slots[i] >= count)
        return bad_param("slots[" + to_string(i) + "] is " + to_string(slots[i]) +
                         ", the cache has " + to_string(count));
      const auto put = taken.emplace(slots[i], i);
      if (slots[i] >= 0 && !put.second)
        return bad_param("slots[" + to_string(put.first->second) + "] and slots[" + to_string(i) +
                         "] are both " + to_string(slots[i]));
    }
    return atb::NO_ERROR;
  }

  template <class T> static void Write(const atb::VariantPack& pack, size_t index) {
    const Paged paged = Cache(desc_in(pack, index), desc_in(pack, 2 + index));
    const auto* slots = data_in<int32_t>(pack, 4);
    for (int64_t i = 0; i < dim(desc_in(pack, 4), 0); ++i)
      if (slots[i] >= 0)
        write_row(data_in<T>(pack, index) + i * paged.hidden,
                  paged.at(data_out<T>(pack, index), slots[i] / paged.block),
                  slots[i] % paged.block);
  }
};

// Without outputs: it writes into its input `past`.
class KvCache : public SingleOperation {
 public:
  explicit KvCache(const KvCacheParam&)
      : SingleOperation(
            "KvCacheOperation",
            {"KvCache", {{"newKv"}, {"layerId"}, {"past"}, {"tokenOffset"}, {"seqLen"}}, {}}) {}

  static Status Check(const KvCacheParam&) { return atb::NO_ERROR; }

 protected:
  Status Infer(const Descs& in, Descs&) const override {
    const TensorDesc &rows = in[0], &past = in[2];
    if (is_nz(rows) || is_nz(past))
      return fail(atb::ERROR_INVALID_TENSOR_FORMAT, "past is nz; the emulation's KvCache takes nd");
    if (rank(rows) != 2 && rank(rows) != 4) return bad_rank("newKv", rows, "2 or 4 dims");
    if (!is(in[1], {1})) return bad_dim("layerId", in[1], "[1]");
    Contiguous cache{};
    const Status status = read_contiguous("past", past, Hidden(rows), cache);
    if (status != atb::NO_ERROR) return status;
    if (!is(in[3], {cache.sequences}))
      return bad_dim("tokenOffset", in[3], "[" + to_string(cache.sequences) + "], as past has");
    if (!is(in[4], {cache.sequences}))
      return bad_dim("seqLen", in[4], "[" + to_string(cache.sequences) + "], as past has");
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& rows = desc_in(pack, 0);
    Contiguous cache{};
    read_contiguous("past", desc_in(pack, 2), Hidden(rows), cache);
    const Status status = CheckValues(pack, cache);
    if (status != atb::NO_ERROR) return status;
    if (rows.dtype == ACL_INT8)
      Write<int8_t>(pack, cache);
    else
      Write<uint16_t>(pack, cache);
    return atb::NO_ERROR;
  }

 private:
  static int64_t Hidden(const TensorDesc& rows) {
    return rank(rows) == 2 ? last(rows) : product(rows, 2, 4);
  }

  static Status CheckValues(const atb::VariantPack& pack, const Contiguous& cache) {
    const auto *layer = data_in<int32_t>(pack, 1), *ends = data_in<int32_t>(pack, 3),
               *lengths = data_in<int32_t>(pack, 4);
    if (layer[0] < 0 || layer[0] >= cache.layers)
      return bad_param("layerId is " + to_string(layer[0]) + ", past has " +
                       to_string(cache.layers));
    int64_t tokens = 0;
    for (int64_t s = 0; s < cache.sequences; ++s) {
      tokens += lengths[s];
      if (lengths[s] < 0 || lengths[s] > ends[s] || ends[s] > cache.slots)
        return bad_param("sequence " + to_string(s) + " has seqLen " + to_string(lengths[s]) +
                         " and tokenOffset " + to_string(ends[s]) +
                         ", wanted seqLen <= tokenOffset = past + new <= " +
                         to_string(cache.slots));
    }
    const int64_t rows = numel(desc_in(pack, 0)) / cache.hidden;
    if (tokens == rows) return atb::NO_ERROR;
    return bad_param("seqLen sums to " + to_string(tokens) + ", newKv has " + to_string(rows));
  }

  template <class T> static void Write(const atb::VariantPack& pack, const Contiguous& cache) {
    const auto *layer = data_in<int32_t>(pack, 1), *ends = data_in<int32_t>(pack, 3),
               *lengths = data_in<int32_t>(pack, 4);
    const T* from = data_in<T>(pack, 0);
    T* past = static_cast<T*>(pack.inTensors[2].deviceData);
    for (int64_t s = 0; s < cache.sequences; ++s)
      for (int64_t slot = ends[s] - lengths[s]; slot < ends[s]; ++slot, from += cache.hidden)
        write_row(from, cache.at(past, layer[0] * cache.sequences + s), slot);
  }
};

}  // namespace

}  // namespace emulation::cache

template <>
atb::Status atb::CreateOperation(const atb::infer::ReshapeAndCacheParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::cache::ReshapeAndCache>("ReshapeAndCacheOperation", param,
                                                       operation);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::KvCacheParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::cache::KvCache>("KvCacheOperation", param, operation);
}
