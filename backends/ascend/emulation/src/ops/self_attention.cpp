// The checks of SelfAttention's param, and which of its kinds it asks for.
#include "self_attention.hpp"

namespace emulation::self_attention {

namespace {

using Param = SelfAttentionParam;

Status check_heads(const Param& param) {
  if (param.headNum <= 0)
    return bad_param("headNum is " + to_string(param.headNum) + ", wanted more than 0");
  if (param.kvHeadNum < 0 || (param.kvHeadNum > 0 && param.headNum % param.kvHeadNum != 0))
    return bad_param("headNum is " + to_string(param.headNum) +
                     ", wanted a multiple of kvHeadNum " + to_string(param.kvHeadNum));
  return atb::NO_ERROR;
}

Status check_mask(const Param& param) {
  const bool window = param.maskType == Param::MASK_TYPE_SLIDING_WINDOW_NORM ||
                      param.maskType == Param::MASK_TYPE_SLIDING_WINDOW_COMPRESS;
  if (window != (param.windowSize > 0))
    return bad_param("windowSize is " + to_string(param.windowSize) + " and maskType " +
                     to_string(int(param.maskType)) +
                     "; a window wants a SLIDING_WINDOW mask and the mask a window");
  if (param.isTriuMask > 1)
    return bad_param("isTriuMask is " + to_string(param.isTriuMask) + ", wanted 0 or 1");
  if (param.isTriuMask == 1 && !has_mask(param))
    return bad_param("isTriuMask is 1, which wants a mask, and maskType is MASK_TYPE_UNDEFINED");
  if (param.maskType != Param::MASK_TYPE_UNDEFINED && param.maskType != Param::MASK_TYPE_NORM &&
      param.maskType != Param::MASK_TYPE_NORM_COMPRESS)
    return bad_param("maskType is " + to_string(int(param.maskType)) +
                     "; the emulation has UNDEFINED, NORM and NORM_COMPRESS");
  if (param.maskType != Param::MASK_TYPE_NORM_COMPRESS) return atb::NO_ERROR;
  if (param.calcType != Param::PA_ENCODER)
    return bad_param("maskType is MASK_TYPE_NORM_COMPRESS, which wants calcType PA_ENCODER");
  if (param.isTriuMask != 1)
    return bad_param("maskType is MASK_TYPE_NORM_COMPRESS, which wants isTriuMask 1");
  return atb::NO_ERROR;
}

Status check_rest(const Param& param) {
  if (param.quantType != Param::TYPE_QUANT_UNQUANT || param.outDataType != ACL_DT_UNDEFINED)
    return bad_param("the param asks for int8; the emulation has no quantised attention");
  if (param.calcType == Param::PREFIX_ENCODER)
    return bad_param("calcType is PREFIX_ENCODER, which the emulation does not have");
  if (param.calcType == Param::PA_ENCODER && param.kvcacheCfg != Param::K_CACHE_V_CACHE)
    return bad_param("kvcacheCfg is K_BYPASS_V_BYPASS, which calcType PA_ENCODER does not take");
  if (param.batchRunStatusEnable || param.clampType != Param::CLAMP_TYPE_UNDEFINED ||
      param.scaleType != Param::SCALE_TYPE_TOR ||
      param.inputLayout != atb::infer::TYPE_BSND || param.mlaVHeadSize != 0 ||
      param.cacheType != Param::CACHE_TYPE_NORM)
    return bad_param("batchRunStatusEnable, clampType, scaleType, inputLayout, mlaVHeadSize and "
                     "cacheType have to keep their defaults in the emulation");
  return atb::NO_ERROR;
}

Status check(const Param& param) {
  Status status = check_heads(param);
  if (status == atb::NO_ERROR) status = check_mask(param);
  return status == atb::NO_ERROR ? check_rest(param) : status;
}

}  // namespace

}  // namespace emulation::self_attention

atb::Status emulation::check_self_attention(const SelfAttentionParam& param) {
  return self_attention::check(param);
}

template <>
atb::Status atb::CreateOperation(const atb::infer::SelfAttentionParam& param,
                                 atb::Operation** operation) {
  return param.calcType == atb::infer::SelfAttentionParam::PA_ENCODER
             ? emulation::create_pa_encoder(param, operation)
             : emulation::create_contiguous_attention(param, operation);
}
