#include "atb/context.h"
#include "log.hpp"

namespace {

class StreamContext : public atb::Context {
 public:
  atb::Status SetExecuteStream(aclrtStream stream) override {
    stream_ = stream;
    return atb::NO_ERROR;
  }
  aclrtStream GetExecuteStream() const override { return stream_; }
  atb::Status SetAsyncTilingCopyStatus(bool enable) override {
    async_ = enable;
    return atb::NO_ERROR;
  }
  bool GetAsyncTilingCopyStatus() const override { return async_; }

 private:
  aclrtStream stream_ = nullptr;
  bool async_ = false;
};

}  // namespace

namespace atb {

Status CreateContext(Context** context) {
  if (context == nullptr)
    return emulation::fail(ERROR_INVALID_PARAM, "CreateContext: the address is null");
  *context = new StreamContext;
  return NO_ERROR;
}

Status DestroyContext(Context* context) {
  if (context == nullptr)
    return emulation::fail(ERROR_INVALID_CONTEXT_ADDR, "DestroyContext: the context is null");
  delete context;
  return NO_ERROR;
}

}  // namespace atb
