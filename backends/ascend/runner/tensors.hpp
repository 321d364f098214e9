// Tensors of a program: what they are for the sizes of a plan, and where they lie on the device.
#pragma once
#include "message.hpp"

namespace gdsl __attribute__((visibility("hidden"))) {

struct TensorSpec {
  const char* name;
  aclDataType dtype;
  aclFormat format;
  std::vector<int64_t> shape;
};

inline atb::TensorDesc DescOf(const TensorSpec& spec) {
  atb::TensorDesc desc;
  desc.dtype = spec.dtype;
  desc.format = spec.format;
  desc.shape.dimNum = spec.shape.size();
  for (size_t i = 0; i < spec.shape.size(); ++i) desc.shape.dims[i] = spec.shape[i];
  return desc;
}

inline uint64_t BytesOf(const TensorSpec& spec) {
  return atb::Utils::GetTensorSize(DescOf(spec));
}

inline int64_t CountOf(const TensorSpec& spec) {
  int64_t count = 1;
  for (const int64_t size : spec.shape) count *= size;
  return count;
}

// Device memory that grows. What is queued on the stream may still use the old memory, so that
// growing waits for it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (memory_) aclrtFree(memory_);
  }

  void* Grow(uint64_t bytes, aclrtStream stream, const char* what) {
    if (bytes <= bytes_) return memory_;
    if (memory_) {
      CheckAcl(aclrtSynchronizeStream(stream), "waiting for the device");
      aclrtFree(memory_);
      memory_ = nullptr;
      bytes_ = 0;
    }
    CheckAcl(aclrtMalloc(&memory_, bytes, ACL_MEM_MALLOC_HUGE_FIRST),
             "allocating " + std::to_string(bytes) + " bytes for " + what);
    bytes_ = bytes;
    return memory_;
  }
  void* data() const { return memory_; }

 private:
  void* memory_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace gdsl
