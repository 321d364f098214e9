// Runs one operation: made by its name and the fields of its param as text, with tensors that the
// caller holds. Errors of the driver itself are -1.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include "acl/acl.h"
#include "atb/atb_infer.h"

extern "C" const char* atb_emulation_last_error();
extern "C" void atb_emulation_set_soc(const char* name);

namespace {

using namespace atb::infer;
using Fields = std::map<std::string, std::string>;

std::string driver_error;

template <class T> void read(Fields& fields, const char* name, T& to) {
  const auto found = fields.find(name);
  if (found == fields.end()) return;
  const double value = std::strtod(found->second.c_str(), nullptr);
  if constexpr (std::is_enum_v<T>)
    to = static_cast<T>(static_cast<int>(value));
  else
    to = static_cast<T>(value);
  fields.erase(found);
}
template <class T> void read(Fields& fields, const char* name, atb::SVector<T>& to) {
  const auto found = fields.find(name);
  if (found == fields.end()) return;
  to.clear();
  std::istringstream words(found->second);
  for (T value; words >> value;) to.push_back(value);
  fields.erase(found);
}
template <size_t N> void read(Fields& fields, const char* name, uint8_t (&to)[N]) {
  int first = 0;
  read(fields, name, first);
  to[N - 1] = static_cast<uint8_t>(first);
}

#define FIELD(name) read(f, #name, p.name)

void fill(Fields& f, LinearParam& p) {
  FIELD(transposeA); FIELD(transposeB); FIELD(hasBias); FIELD(outDataType); FIELD(enAccum);
  FIELD(matmulType);
}
void fill(Fields& f, RmsNormParam& p) {
  FIELD(layerType); FIELD(normParam.quantType); FIELD(normParam.epsilon); FIELD(normParam.rstd);
  FIELD(normParam.modelType); FIELD(normParam.rsv); FIELD(preNormParam.epsilon);
  FIELD(preNormParam.hasBias); FIELD(postNormParam.epsilon); FIELD(postNormParam.hasBias);
  FIELD(preNormParam.rsv); FIELD(postNormParam.rsv);
}
void fill(Fields& f, LayerNormParam& p) {
  FIELD(layerType); FIELD(normParam.epsilon); FIELD(normParam.beginNormAxis);
  FIELD(normParam.beginParamsAxis); FIELD(normParam.rsv);
}
void fill(Fields& f, RopeParam& p) { FIELD(rotaryCoeff); FIELD(cosFormat); }
void fill(Fields& f, SelfAttentionParam& p) {
  FIELD(quantType); FIELD(headNum); FIELD(kvHeadNum); FIELD(qScale); FIELD(qkScale);
  FIELD(batchRunStatusEnable); FIELD(isTriuMask); FIELD(calcType); FIELD(maskType);
  FIELD(kvcacheCfg); FIELD(windowSize);
}
void fill(Fields& f, PagedAttentionParam& p) {
  FIELD(headNum); FIELD(qkScale); FIELD(kvHeadNum); FIELD(maskType); FIELD(quantType);
  FIELD(calcType);
}
void fill(Fields& f, ReshapeAndCacheParam& p) { FIELD(compressType); FIELD(kvCacheCfg); }
void fill(Fields&, KvCacheParam&) {}
void fill(Fields& f, ElewiseParam& p) {
  FIELD(elewiseType); FIELD(mulsParam.varAttr); FIELD(outTensorType); FIELD(mulsParam.rsv);
  FIELD(quantParam.rsv);
}
void fill(Fields& f, ActivationParam& p) {
  FIELD(activationType); FIELD(scale); FIELD(dim); FIELD(geluMode);
}
void fill(Fields& f, SplitParam& p) { FIELD(splitDim); FIELD(splitNum); FIELD(splitSizes); }
void fill(Fields& f, ConcatParam& p) { FIELD(concatDim); }
void fill(Fields& f, TransposeParam& p) { FIELD(perm); }
void fill(Fields& f, SliceParam& p) { FIELD(offsets); FIELD(size); }
void fill(Fields& f, GatherParam& p) { FIELD(axis); FIELD(batchDims); }
void fill(Fields& f, SoftmaxParam& p) { FIELD(axes); }
void fill(Fields& f, TransdataParam& p) { FIELD(transdataType); FIELD(outCrops); }

template <class Param> atb::Status make(Fields& fields, atb::Operation** made) {
  Param param;
  fill(fields, param);
  read(fields, "rsv", param.rsv);
  if (!fields.empty()) {
    driver_error = "no field " + fields.begin()->first;
    return -1;
  }
  return atb::CreateOperation(param, made);
}

using Maker = atb::Status (*)(Fields&, atb::Operation**);

const std::map<std::string, Maker> makers = {
    {"Linear", make<LinearParam>},
    {"RmsNorm", make<RmsNormParam>},
    {"LayerNorm", make<LayerNormParam>},
    {"Rope", make<RopeParam>},
    {"SelfAttention", make<SelfAttentionParam>},
    {"PagedAttention", make<PagedAttentionParam>},
    {"ReshapeAndCache", make<ReshapeAndCacheParam>},
    {"KvCache", make<KvCacheParam>},
    {"Elewise", make<ElewiseParam>},
    {"Activation", make<ActivationParam>},
    {"Split", make<SplitParam>},
    {"Concat", make<ConcatParam>},
    {"Transpose", make<TransposeParam>},
    {"Slice", make<SliceParam>},
    {"Gather", make<GatherParam>},
    {"Softmax", make<SoftmaxParam>},
    {"Transdata", make<TransdataParam>},
};

}  // namespace

// As the caller lays it out.
struct Plain {
  int32_t dtype, format, dims;
  int64_t sizes[8];
  void *device, *host;
};

namespace {

atb::TensorDesc desc_of(const Plain& plain) {
  atb::TensorDesc desc;
  desc.dtype = static_cast<aclDataType>(plain.dtype);
  desc.format = static_cast<aclFormat>(plain.format);
  desc.shape.dimNum = static_cast<uint64_t>(plain.dims);
  std::memcpy(desc.shape.dims, plain.sizes, sizeof plain.sizes);
  return desc;
}

atb::Tensor tensor_of(const Plain& plain) {
  atb::Tensor tensor;
  tensor.desc = desc_of(plain);
  tensor.deviceData = plain.device;
  tensor.hostData = plain.host;
  tensor.dataSize = atb::Utils::GetTensorSize(tensor.desc);
  return tensor;
}

atb::Status execute(atb::Operation* operation, const atb::VariantPack& pack, aclrtStream stream) {
  atb::Context* context = nullptr;
  atb::Status status = atb::CreateContext(&context);
  if (status != 0) return status;
  context->SetExecuteStream(stream);
  uint64_t size = 0;
  status = operation->Setup(pack, size, context);
  const std::unique_ptr<uint8_t[]> workspace(new uint8_t[size + 1]);
  if (status == 0) status = operation->Execute(pack, workspace.get(), size, context);
  atb::DestroyContext(context);
  return status;
}

}  // namespace

extern "C" {

const char* ops_error() {
  return driver_error.empty() ? atb_emulation_last_error() : driver_error.c_str();
}

void ops_soc(const char* name) { atb_emulation_set_soc(name); }

// `fields` has a line "name=value" for every field that is set.
int32_t ops_create(const char* name, const char* fields, void** handle) {
  driver_error.clear();
  const auto maker = makers.find(name);
  if (maker == makers.end()) {
    driver_error = std::string("no operation ") + name;
    return -1;
  }
  Fields given;
  std::istringstream lines(fields);
  for (std::string line; std::getline(lines, line);)
    given[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
  atb::Operation* made = nullptr;
  const int32_t status = maker->second(given, &made);
  *handle = made;
  return status;
}

int32_t ops_infer(void* handle, const Plain* in, int32_t inputs, Plain* out, int32_t* outputs) {
  auto* operation = static_cast<atb::Operation*>(handle);
  atb::SVector<atb::TensorDesc> from, to;
  for (int32_t i = 0; i < inputs; ++i) from.push_back(desc_of(in[i]));
  const int32_t status = operation->InferShape(from, to);
  *outputs = static_cast<int32_t>(operation->GetOutputNum());
  for (size_t i = 0; status == 0 && i < to.size(); ++i) {
    out[i].dtype = to[i].dtype;
    out[i].format = to[i].format;
    out[i].dims = static_cast<int32_t>(to[i].shape.dimNum);
    std::memcpy(out[i].sizes, to[i].shape.dims, sizeof out[i].sizes);
  }
  return status;
}

int32_t ops_execute(void* handle, const Plain* in, int32_t inputs, const Plain* out,
                    int32_t outputs) {
  aclInit(nullptr);
  aclrtSetDevice(0);
  atb::VariantPack pack;
  for (int32_t i = 0; i < inputs; ++i) pack.inTensors.push_back(tensor_of(in[i]));
  for (int32_t i = 0; i < outputs; ++i) pack.outTensors.push_back(tensor_of(out[i]));
  aclrtStream stream = nullptr;
  int32_t status = aclrtCreateStream(&stream);
  if (status == 0) status = execute(static_cast<atb::Operation*>(handle), pack, stream);
  if (stream != nullptr) aclrtDestroyStream(stream);
  return status;
}

void ops_destroy(void* handle) { atb::DestroyOperation(static_cast<atb::Operation*>(handle)); }
}
