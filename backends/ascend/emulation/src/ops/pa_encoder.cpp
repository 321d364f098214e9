// SelfAttention PA_ENCODER: sequences one after another, each attends to its own keys.
#include <algorithm>
#include <optional>
#include "mask.hpp"
#include "self_attention.hpp"

namespace emulation::pa_encoder {

namespace {

enum In : size_t { QUERY, KEY, VALUE };

Signature signature_of(const SelfAttentionParam& param) {
  Signature made = {"SelfAttention", {{"query"}, {"key"}, {"value"}}, {{"output", {QUERY}}}};
  if (has_mask(param)) made.inputs.push_back({"mask"});
  made.inputs.push_back({"seqLen", Place::Host});
  return made;
}

class PaEncoder : public SingleOperation {
 public:
  explicit PaEncoder(const SelfAttentionParam& param)
      : SingleOperation("SelfAttentionOperation", signature_of(param)), param_(completed(param)) {}

  static Status Check(const SelfAttentionParam& param) { return check_self_attention(param); }

 protected:
  Status Infer(const Descs& in, Descs& out) const override {
    const TensorDesc& q = in[QUERY];
    if (rank(q) != 2 && rank(q) != 3) return bad_rank("query", q, "2 or 3 dims");
    const int64_t hidden = numel(q) / dim(q, 0);
    if (hidden % param_.headNum != 0 || (rank(q) == 3 && dim(q, 1) != param_.headNum))
      return bad_dim("query", q, to_string(param_.headNum) + " heads, as headNum says");
    Status status = CheckKeys("key", in[KEY], q);
    if (status == atb::NO_ERROR) status = CheckKeys("value", in[VALUE], q);
    if (status != atb::NO_ERROR) return status;
    if (dim(in[VALUE], 0) != dim(in[KEY], 0))
      return bad_dim("value", in[VALUE], "the rows of key " + text(in[KEY]));
    const TensorDesc& lengths = in[LengthIndex()];
    if (rank(lengths) != 1 && (rank(lengths) != 2 || dim(lengths, 0) != 2))
      return bad_dim("seqLen", lengths, "[sequences] or [2, sequences]");
    out[0] = q;
    if (param_.maskType == SelfAttentionParam::MASK_TYPE_NORM_COMPRESS)
      return Mask(in[3]).CheckCompressedShape();
    return has_mask(param_) && rank(in[3]) < 2 ? bad_dim("mask", in[3], "2 dims or more")
                                               : Status(atb::NO_ERROR);
  }

  Status CheckHost(const Descs& in) const override {
    const std::vector<Span> spans = Spans(in);
    int64_t queries = 0, keys = 0, most_queries = 0, most_keys = 0;
    for (const Span& span : spans) {
      if (span.queries < 1 || span.keys < 1)
        return bad_param("seqLen has " + to_string(std::min(span.queries, span.keys)) +
                         ", wanted 1 or more");
      queries += span.queries;
      keys += span.keys;
      most_queries = std::max(most_queries, span.queries);
      most_keys = std::max(most_keys, span.keys);
    }
    if (queries != dim(in[QUERY], 0) || keys != dim(in[KEY], 0))
      return bad_param("seqLen sums to " + to_string(queries) + " queries and " + to_string(keys) +
                       " keys; query is " + text(in[QUERY]) + " and key " + text(in[KEY]));
    if (param_.maskType != SelfAttentionParam::MASK_TYPE_NORM) return atb::NO_ERROR;
    return Mask(in[3]).CheckShape(
        {int64_t(spans.size()), param_.headNum, most_queries, most_keys});
  }

  Status Run(const atb::VariantPack& pack, uint8_t*) override {
    Descs in;
    in.reserve(pack.inTensors.size());
    for (const atb::Tensor& tensor : pack.inTensors) in.push_back(tensor.desc);
    const std::vector<Span> spans = Spans(in);
    const Status status = CheckMask(pack, spans);
    if (status != atb::NO_ERROR) return status;
    Compute(pack, spans);
    return atb::NO_ERROR;
  }

 private:
  uint32_t LengthIndex() const { return has_mask(param_) ? 4 : 3; }

  Status CheckKeys(const char* name, const TensorDesc& keys, const TensorDesc& q) const {
    const int64_t size = numel(q) / dim(q, 0) / param_.headNum;
    if (rank(keys) != rank(q)) return bad_rank(name, keys, "as many dims as query " + text(q));
    const bool fits = rank(q) == 2 ? last(keys) == param_.kvHeadNum * size
                                   : dim(keys, 1) == param_.kvHeadNum && last(keys) == size;
    if (fits) return atb::NO_ERROR;
    return bad_dim(name, keys, to_string(param_.kvHeadNum) + " heads of " + to_string(size) +
                   ", as kvHeadNum and query " + text(q) + " say");
  }

  // seqLen may have a second row, the lengths of the keys.
  std::vector<Span> Spans(const Descs& in) const {
    const std::vector<int32_t>& lengths = Host(LengthIndex());
    const size_t count = size_t(last(in[LengthIndex()]));
    std::vector<Span> spans;
    int64_t first = 0;
    for (size_t i = 0; i < count; ++i) {
      spans.push_back({first, lengths[i], lengths[lengths.size() - count + i]});
      first += lengths[i];
    }
    return spans;
  }

  Status CheckMask(const atb::VariantPack& pack, const std::vector<Span>& spans) const {
    if (!has_mask(param_)) return atb::NO_ERROR;
    const Mask mask(desc_in(pack, 3), pack.inTensors[3].deviceData);
    if (param_.maskType == SelfAttentionParam::MASK_TYPE_NORM_COMPRESS) return mask.CheckTriangle();
    Status status = atb::NO_ERROR;
    for (size_t i = 0; i < spans.size() && status == atb::NO_ERROR; ++i)
      status = mask.CheckValues(int64_t(i), spans[i], param_.headNum, param_.isTriuMask == 1);
    return status;
  }

  void Compute(const atb::VariantPack& pack, const std::vector<Span>& spans) const {
    const TensorDesc& q = desc_in(pack, QUERY);
    const int64_t size = numel(q) / dim(q, 0) / param_.headNum;
    const int64_t width = param_.kvHeadNum * size;
    std::vector<int64_t> first_key;
    int64_t next = 0;
    for (const Span& span : spans) {
      first_key.push_back(next);
      next += span.keys;
    }
    const auto fetch = [&](size_t i, int64_t head, float* keys, float* values) {
      for (int64_t key = 0; key < spans[i].keys; ++key) {
        const int64_t from = (first_key[i] + key) * width + head * size;
        widen_from(pack.inTensors[KEY], from, size, keys + key * size);
        widen_from(pack.inTensors[VALUE], from, size, values + key * size);
      }
    };
    std::optional<Mask> mask;
    if (param_.maskType == SelfAttentionParam::MASK_TYPE_NORM)
      mask.emplace(desc_in(pack, 3), pack.inTensors[3].deviceData);
    const auto hide = [&](size_t i, int64_t row, int64_t head, int64_t keys, float* scores) {
      const int64_t seen = param_.isTriuMask == 1 ? std::min(row + 1, keys) : keys;
      if (mask) mask->Add(int64_t(i), head, row, seen, scores);
      return seen;
    };
    const Floats query(pack.inTensors[QUERY]);
    const Rounded out(pack.outTensors[0]);
    attend(heads_of(param_, size), spans, query.get(), fetch, hide, out.get());
    out.Store();
  }

  SelfAttentionParam param_;
};

}  // namespace

}  // namespace emulation::pa_encoder

atb::Status emulation::create_pa_encoder(const SelfAttentionParam& param,
                                         atb::Operation** operation) {
  return create<pa_encoder::PaEncoder>("SelfAttentionOperation", param, operation);
}
