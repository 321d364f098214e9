// SelfAttention on contiguous caches: writes the new keys and values, then attends to all of them.
#include <algorithm>
#include <optional>
#include "cache.hpp"
#include "mask.hpp"
#include "self_attention.hpp"

namespace emulation::contiguous_attention {

namespace {

bool bypass(const SelfAttentionParam& param) {
  return param.kvcacheCfg == SelfAttentionParam::K_BYPASS_V_BYPASS;
}

// Where the inputs are: without new keys and values, or without a mask, all behind them move up.
struct Places {
  uint32_t query = 0, key = 1, value = 2, keys, values, mask, ends, lengths, layer;

  explicit Places(const SelfAttentionParam& param)
      : keys(bypass(param) ? 1 : 3),
        values(keys + 1),
        mask(values + 1),
        ends(has_mask(param) ? mask + 1 : mask),
        lengths(ends + 1),
        layer(lengths + 1) {}
};

Signature signature_of(const SelfAttentionParam& param) {
  Signature made = {"SelfAttention", {{"query"}}, {{"output", {0}}}};
  auto& inputs = made.inputs;
  if (!bypass(param)) inputs.insert(inputs.end(), {{"key"}, {"value"}});
  inputs.insert(inputs.end(), {{"keyCache"}, {"valueCache"}});
  if (has_mask(param)) inputs.push_back({"mask"});
  inputs.insert(inputs.end(), {{"tokenOffset", Place::Host}, {"seqLen", Place::Host}, {"layerId"}});
  return made;
}

class ContiguousAttention : public SingleOperation {
 public:
  explicit ContiguousAttention(const SelfAttentionParam& param)
      : SingleOperation("SelfAttentionOperation", signature_of(param)),
        param_(completed(param)),
        at_(param) {}

  static Status Check(const SelfAttentionParam& param) { return check_self_attention(param); }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc& q = in[at_.query];
    if (rank(q) != 2 && rank(q) != 4)
      return bad_rank("query", q, "2 dims [tokens, hidden] or 4 [sequences, tokens, heads, dim]");
    if (Hidden(q) % param_.headNum != 0 || (rank(q) == 4 && dim(q, 2) != param_.headNum))
      return bad_dim("query", q, to_string(param_.headNum) + " heads, as headNum says");
    if (Hidden(q) % 16 != 0 || KvHidden(q) % 16 != 0)
      return bad_dim("query", q, "hidden sizes of q and of k that are multiples of 16");
    Status status = bypass(param_) ? Status(atb::NO_ERROR) : CheckNew("key", in[at_.key], q);
    if (status == atb::NO_ERROR && !bypass(param_)) status = CheckNew("value", in[at_.value], q);
    Contiguous keys{}, values{};
    if (status == atb::NO_ERROR)
      status = read_contiguous("keyCache", in[at_.keys], KvHidden(q), keys);
    if (status == atb::NO_ERROR)
      status = read_contiguous("valueCache", in[at_.values], KvHidden(q), values);
    if (status == atb::NO_ERROR) status = CheckSmall(in, keys);
    if (status != atb::NO_ERROR) return status;
    if (!same_shape(in[at_.keys], in[at_.values]))
      return bad_dim("valueCache", in[at_.values], "the shape of keyCache " + text(in[at_.keys]));
    out[0] = rank(q) == 2 ? q : shaped(q, {dim(q, 0), dim(q, 1), Hidden(q)});
    return atb::NO_ERROR;
  }

  Status CheckHost(const Descs& in) const override {
    const TensorDesc& q = in[at_.query];
    const std::vector<int32_t>&ends = Host(at_.ends), &lengths = Host(at_.lengths);
    const int64_t slots = dim(in[at_.keys], is_nz(in[at_.keys]) ? 3 : 2);
    int64_t tokens = 0, most = 0, most_keys = 0;
    for (size_t s = 0; s < ends.size(); ++s) {
      const Status status = CheckSequence(s, rank(q) == 4 ? dim(q, 1) : dim(q, 0), slots);
      if (status != atb::NO_ERROR) return status;
      tokens += lengths[s];
      most = std::max<int64_t>(most, lengths[s]);
      most_keys = std::max<int64_t>(most_keys, ends[s]);
    }
    if (rank(q) == 2 && tokens != dim(q, 0))
      return bad_param("seqLen sums to " + to_string(tokens) + ", query is " + text(q));
    if (!has_mask(param_)) return atb::NO_ERROR;
    return Mask(in[at_.mask]).CheckShape({int64_t(ends.size()), param_.headNum, most, most_keys});
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    const TensorDesc& q = desc_in(pack, at_.query);
    Contiguous cache{};
    read_contiguous("", desc_in(pack, at_.keys), KvHidden(q), cache);
    const int32_t layer = *data_in<int32_t>(pack, at_.layer);
    if (layer < 0 || layer >= cache.layers)
      return bad_param("layerId is " + to_string(layer) + ", the caches have " +
                       to_string(cache.layers));
    const std::vector<Span> spans = Spans(q);
    const Status status = CheckMask(pack, spans);
    if (status != atb::NO_ERROR) return status;
    if (!bypass(param_)) Write(pack, spans, cache, layer);
    Compute(pack, spans, cache, layer);
    return atb::NO_ERROR;
  }

 private:
  static int64_t Hidden(const TensorDesc& q) {
    return rank(q) == 2 ? last(q) : product(q, 2, 4);
  }
  int64_t KvHidden(const TensorDesc& q) const {
    return Hidden(q) / param_.headNum * param_.kvHeadNum;
  }

  Status CheckNew(const char* name, const TensorDesc& rows, const TensorDesc& q) const {
    if (rank(rows) != rank(q)) return bad_rank(name, rows, "as many dims as query " + text(q));
    const bool heads = rank(q) == 2 || (dim(rows, 2) == param_.kvHeadNum && last(rows) == last(q));
    if (Hidden(rows) == KvHidden(q) && heads && RowsMatch(rows, q)) return atb::NO_ERROR;
    return bad_dim(name, rows, "the rows of query " + text(q) + " and " +
                   to_string(param_.kvHeadNum) + " heads of " +
                   to_string(Hidden(q) / param_.headNum));
  }
  static bool RowsMatch(const TensorDesc& rows, const TensorDesc& q) {
    return dim(rows, 0) == dim(q, 0) && (rank(q) == 2 || dim(rows, 1) == dim(q, 1));
  }

  Status CheckSmall(const Descs& in, const Contiguous& cache) const {
    const TensorDesc& q = in[at_.query];
    if (rank(q) == 4 && dim(q, 0) != cache.sequences)
      return bad_dim("query", q, to_string(cache.sequences) + " sequences, as the caches have");
    const std::string wanted = "[" + to_string(cache.sequences) + "], as the caches have sequences";
    if (!is(in[at_.ends], {cache.sequences})) return bad_dim("tokenOffset", in[at_.ends], wanted);
    if (!is(in[at_.lengths], {cache.sequences})) return bad_dim("seqLen", in[at_.lengths], wanted);
    if (!is(in[at_.layer], {1})) return bad_dim("layerId", in[at_.layer], "[1]");
    return has_mask(param_) && rank(in[at_.mask]) < 2
               ? bad_dim("mask", in[at_.mask], "2 dims or more")
               : Status(atb::NO_ERROR);
  }

  Status CheckSequence(size_t s, int64_t most, int64_t slots) const {
    const int64_t length = Host(at_.lengths)[s], end = Host(at_.ends)[s];
    if (length < 1 || length > most)
      return bad_param("seqLen[" + to_string(s) + "] is " + to_string(length) + ", wanted 1 to " +
                       to_string(most) + ", the new tokens");
    if (param_.calcType == SelfAttentionParam::DECODER && length != 1)
      return bad_param("seqLen[" + to_string(s) + "] is " + to_string(length) +
                       ", calcType DECODER takes one token a sequence");
    if (end < length || end > slots)
      return bad_param("tokenOffset[" + to_string(s) + "] is " + to_string(end) + ", wanted " +
                       to_string(length) + " (seqLen) to " + to_string(slots) +
                       " (slots): it is past + new");
    return atb::NO_ERROR;
  }

  std::vector<Span> Spans(const TensorDesc& q) const {
    std::vector<Span> spans;
    int64_t first = 0;
    for (size_t s = 0; s < Host(at_.ends).size(); ++s) {
      if (rank(q) == 4) first = int64_t(s) * dim(q, 1);
      spans.push_back({first, Host(at_.lengths)[s], Host(at_.ends)[s]});
      first += Host(at_.lengths)[s];
    }
    return spans;
  }

  Status CheckMask(const atb::VariantPack& pack, const std::vector<Span>& spans) const {
    if (!has_mask(param_)) return atb::NO_ERROR;
    const Mask mask(desc_in(pack, at_.mask), pack.inTensors[at_.mask].deviceData);
    Status status = atb::NO_ERROR;
    for (size_t s = 0; s < spans.size() && status == atb::NO_ERROR; ++s)
      status = mask.CheckValues(int64_t(s), spans[s], param_.headNum, param_.isTriuMask == 1);
    return status;
  }

  // New rows land at [tokenOffset - seqLen, tokenOffset).
  void Write(const atb::VariantPack& pack, const std::vector<Span>& spans, const Contiguous& cache,
             int64_t layer) const {
    for (const uint32_t which : {0U, 1U}) {
      const auto* rows = data_in<half>(pack, at_.key + which);  // bf16 is as wide
      auto* to = static_cast<half*>(pack.inTensors[at_.keys + which].deviceData);
      for (size_t s = 0; s < spans.size(); ++s)
        for (int64_t i = 0; i < spans[s].queries; ++i)
          write_row(rows + (spans[s].first + i) * cache.hidden,
                    cache.at(to, layer * cache.sequences + int64_t(s)),
                    spans[s].keys - spans[s].queries + i);
    }
  }

  void Compute(const atb::VariantPack& pack, const std::vector<Span>& spans,
               const Contiguous& cache, int64_t layer) const {
    const int64_t size = cache.hidden / param_.kvHeadNum;
    const auto fetch = [&](size_t s, int64_t head, float* keys, float* values) {
      for (int64_t i = 0; i < spans[s].keys; ++i) {
        const int64_t place = layer * cache.sequences + int64_t(s);
        widen_slot(pack.inTensors[at_.keys], cache, place, i, head * size, size, keys + i * size);
        widen_slot(pack.inTensors[at_.values], cache, place, i, head * size, size,
                   values + i * size);
      }
    };
    std::optional<Mask> mask;
    if (has_mask(param_))
      mask.emplace(desc_in(pack, at_.mask), pack.inTensors[at_.mask].deviceData);
    const auto hide = [&](size_t s, int64_t row, int64_t head, int64_t keys, float* scores) {
      const int64_t seen = param_.isTriuMask == 1 ? std::min(row + 1, keys) : keys;
      if (mask) mask->Add(int64_t(s), head, row, seen, scores);
      return seen;
    };
    const Floats query(pack.inTensors[at_.query]);
    const Rounded out(pack.outTensors[0]);
    attend(heads_of(param_, size), spans, query.get(), fetch, hide, out.get());
    out.Store();
  }

  SelfAttentionParam param_;
  Places at_;
};

}  // namespace

}  // namespace emulation::contiguous_attention

atb::Status emulation::create_contiguous_attention(const SelfAttentionParam& param,
                                                   atb::Operation** operation) {
  return create<contiguous_attention::ContiguousAttention>("SelfAttentionOperation", param,
                                                           operation);
}
