// What the two kinds of SelfAttention share.
#pragma once
#include "../math/attention.hpp"
#include "helpers.hpp"

namespace emulation {

using SelfAttentionParam = atb::infer::SelfAttentionParam;

// With kvHeadNum filled in.
inline SelfAttentionParam completed(SelfAttentionParam param) {
  if (param.kvHeadNum == 0) param.kvHeadNum = param.headNum;
  return param;
}
inline bool has_mask(const SelfAttentionParam& param) {
  return param.maskType != SelfAttentionParam::MASK_TYPE_UNDEFINED;
}
inline Heads heads_of(const SelfAttentionParam& param, int64_t size) {
  return {param.headNum, param.kvHeadNum, size, size, param.qScale * param.qkScale};
}

// What holds for all calcTypes.
Status check_self_attention(const SelfAttentionParam& param);

Status create_pa_encoder(const SelfAttentionParam& param, atb::Operation** operation);
Status create_contiguous_attention(const SelfAttentionParam& param, atb::Operation** operation);

}  // namespace emulation
