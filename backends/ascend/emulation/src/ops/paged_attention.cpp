// PagedAttention: every row is one query of its own, which sees the keys of its blocks.
#include <algorithm>
#include "../math/attention.hpp"
#include "cache.hpp"

namespace emulation::paged_attention {

namespace {

using Param = atb::infer::PagedAttentionParam;

enum In : size_t { QUERY, KEYS, VALUES, BLOCKS, CONTEXTS };

Signature signature_here() {
  const Place place = is_310p() ? Place::HostAndDevice : Place::Host;
  return {"PagedAttention",
          {{"query"}, {"keyCache"}, {"valueCache"}, {"blockTables"}, {"contextLens", place}},
          {{"output", {QUERY}}}};
}

class PagedAttention : public SingleOperation {
 public:
  explicit PagedAttention(const Param& param)
      : SingleOperation("PagedAttentionOperation", signature_here()), param_(param) {
    if (param_.kvHeadNum == 0) param_.kvHeadNum = param_.headNum;
  }

  static Status Check(const Param& param) {
    if (param.headNum <= 0)
      return bad_param("headNum is " + to_string(param.headNum) + ", wanted more than 0");
    if (param.kvHeadNum < 0 || (param.kvHeadNum > 0 && param.headNum % param.kvHeadNum != 0))
      return bad_param("headNum is " + to_string(param.headNum) +
                       ", wanted a multiple of kvHeadNum " + to_string(param.kvHeadNum));
    if (param.maskType != Param::UNDEFINED)
      return bad_param("maskType is " + to_string(int(param.maskType)) +
                       ", wanted UNDEFINED: a query sees the contextLens keys that it has");
    if (param.quantType != Param::TYPE_QUANT_UNQUANT || param.hasQuantOffset ||
        param.outDataType != ACL_DT_UNDEFINED)
      return bad_param("the param asks for int8; the emulation has no quantised attention");
    if (param.batchRunStatusEnable || param.compressType != Param::COMPRESS_TYPE_UNDEFINED ||
        param.calcType != Param::CALC_TYPE_UNDEFINED || param.scaleType != Param::SCALE_TYPE_TOR ||
        param.inputLayout != atb::infer::TYPE_BSND || param.mlaVHeadSize != 0)
      return bad_param("batchRunStatusEnable, compressType, calcType, scaleType, inputLayout and "
                       "mlaVHeadSize have to keep their defaults in the emulation");
    return atb::NO_ERROR;
  }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc& q = in[QUERY];
    if (rank(q) != 3) return bad_rank("query", q, "3 dims [tokens, heads, dim]");
    if (dim(q, 1) != param_.headNum)
      return bad_dim("query", q, to_string(param_.headNum) + " heads, as headNum says");
    Paged keys{}, values{};
    const Status status = ReadCaches(in, keys, values);
    if (status != atb::NO_ERROR) return status;
    if (rank(in[BLOCKS]) != 2 || dim(in[BLOCKS], 0) != dim(q, 0))
      return bad_dim("blockTables", in[BLOCKS], "[" + to_string(dim(q, 0)) +
                     ", blocks], a row for every query");
    if (!is(in[CONTEXTS], {dim(q, 0)}))
      return bad_dim("contextLens", in[CONTEXTS], "[" + to_string(dim(q, 0)) +
                     "], one for every query");
    out[0] = shaped(q, {dim(q, 0), param_.headNum, values.hidden / param_.kvHeadNum});
    return atb::NO_ERROR;
  }

  Status CheckHost(const Descs& in) const override {
    const int64_t most = last(in[BLOCKS]) * dim(in[KEYS], is_nz(in[KEYS]) ? 2 : 1);
    const std::vector<int32_t>& contexts = Host(CONTEXTS);
    for (size_t i = 0; i < contexts.size(); ++i)
      if (contexts[i] < 1 || contexts[i] > most)
        return bad_param("contextLens[" + to_string(i) + "] is " + to_string(contexts[i]) +
                         ", wanted 1 to " + to_string(most) +
                         ", the slots of a row of blockTables");
    return atb::NO_ERROR;
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const Status status = CheckBlocks(pack);
    if (status != atb::NO_ERROR) return status;
    Compute(pack);
    return atb::NO_ERROR;
  }

 private:
  Status ReadCaches(const Descs& in, Paged& keys, Paged& values) const {
    const int64_t head_dim = last(in[QUERY]);
    Status status = read_paged("keyCache", in[KEYS], param_.kvHeadNum, head_dim, keys);
    if (status == atb::NO_ERROR)
      status = read_paged("valueCache", in[VALUES], param_.kvHeadNum, head_dim, values);
    if (status != atb::NO_ERROR) return status;
    if (keys.blocks != values.blocks || keys.block != values.block)
      return bad_dim("valueCache", in[VALUES], "the blocks of keyCache " + text(in[KEYS]));
    if (head_dim > 576) return bad_dim("query", in[QUERY], "at most 576 as the dim of heads");
    if (head_dim > 256 && keys.block > 128)
      return bad_dim("keyCache", in[KEYS],
                     "blocks of at most 128 slots for heads of more than 256");
    return atb::NO_ERROR;
  }

  Status CheckBlocks(const atb::VariantPack& pack) const {
    const TensorDesc& cache = desc_in(pack, KEYS);
    const int64_t blocks = dim(cache, 0), block = dim(cache, is_nz(cache) ? 2 : 1);
    const int64_t width = last(desc_in(pack, BLOCKS));
    const std::vector<int32_t>& contexts = Host(CONTEXTS);
    const auto* table = data_in<int32_t>(pack, BLOCKS);
    for (int64_t row = 0; row < int64_t(contexts.size()); ++row)
      for (int64_t i = 0; i * block < contexts[size_t(row)]; ++i)
        if (table[row * width + i] < 0 || table[row * width + i] >= blocks)
          return bad_param("blockTables[" + to_string(row) + ", " + to_string(i) + "] is " +
                           to_string(table[row * width + i]) + ", the cache has " +
                           to_string(blocks) + " blocks");
    return atb::NO_ERROR;
  }

  void Compute(const atb::VariantPack& pack) const {
    const TensorDesc& q = desc_in(pack, QUERY);
    const int64_t kv = param_.kvHeadNum, size = last(q), width = last(desc_in(pack, BLOCKS));
    const Heads heads{param_.headNum, kv, size, size, param_.qkScale};
    Paged keys{}, values{};
    read_paged("", desc_in(pack, KEYS), kv, size, keys);
    read_paged("", desc_in(pack, VALUES), kv, size, values);
    std::vector<Span> spans;
    for (int32_t length : Host(CONTEXTS)) spans.push_back({int64_t(spans.size()), 1, length});
    const auto* table = data_in<int32_t>(pack, BLOCKS);
    const auto fetch = [&](size_t query, int64_t head, float* k, float* v) {
      const int32_t* row = table + int64_t(query) * width;
      for (int64_t i = 0; i < spans[query].keys; ++i) {
        const int64_t block = row[i / keys.block], slot = i % keys.block;
        widen_slot(pack.inTensors[KEYS], keys, block, slot, head * size, size, k + i * size);
        widen_slot(pack.inTensors[VALUES], values, block, slot, head * size, size, v + i * size);
      }
    };
    const auto hide = [](size_t, int64_t, int64_t, int64_t n, float*) { return n; };
    const Floats query(pack.inTensors[QUERY]);
    const Rounded out(pack.outTensors[0]);
    attend(heads, spans, query.get(), fetch, hide, out.get());
    out.Store();
  }

  Param param_;
};

}  // namespace

}  // namespace emulation::paged_attention

template <>
atb::Status atb::CreateOperation(const atb::infer::PagedAttentionParam& param,
                                 atb::Operation** operation) {
  return emulation::create<emulation::paged_attention::PagedAttention>("PagedAttentionOperation",
                                                                       param, operation);
}
