#include "acl.hpp"
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include "infer.hpp"
#include "log.hpp"
#include "operation.hpp"

namespace {

using emulation::fail;

struct Stream {
  std::thread::id user;
  bool pending = false;  // work was put on it since it was synchronised
};

struct Device {
  std::mutex lock;
  std::string soc = "Ascend910B";
  bool initialised = false, set = false;
  int32_t id = 0;
  std::set<Stream*> streams;
};

// Made when first asked for: constructors of other files may name the SoC.
Device& device() {
  static Device& made = *new Device;
  return made;
}

aclError need_device(const char* call) {
  const std::lock_guard<std::mutex> guard(device().lock);
  if (device().set) return ACL_SUCCESS;
  return fail(ACL_ERROR_UNINITIALIZE, std::string(call) + " before aclInit and aclrtSetDevice");
}

// Results that are read before the stream is synchronised are not there yet on a device().
bool unfinished() {
  const std::lock_guard<std::mutex> guard(device().lock);
  for (const Stream* stream : device().streams)
    if (stream->pending && stream->user == std::this_thread::get_id()) return true;
  return false;
}

aclError copy(const char* call, void* to, size_t most, const void* from, size_t count) {
  if (to == nullptr || from == nullptr)
    return fail(ACL_ERROR_INVALID_PARAM, std::string(call) + ": an address is null");
  if (count > most)
    return fail(ACL_ERROR_INVALID_PARAM, std::string(call) + ": " + std::to_string(count) +
                                             " bytes into " + std::to_string(most));
  std::memmove(to, from, count);
  return ACL_SUCCESS;
}

}  // namespace

namespace emulation {

bool use_stream(aclrtStream stream) {
  const std::lock_guard<std::mutex> guard(device().lock);
  const auto found = device().streams.find(static_cast<Stream*>(stream));
  if (found == device().streams.end()) return false;
  (*found)->pending = true;
  (*found)->user = std::this_thread::get_id();
  return true;
}

bool is_310p() {
  const std::lock_guard<std::mutex> guard(device().lock);
  for (const char* name : {"310P", "310p", "310B", "910A", "910Pro"})
    if (device().soc.find(name) != std::string::npos) return true;
  return false;
}

}  // namespace emulation

extern "C" {

// Which SoC is emulated, by its name: all but 310P, 310B and 910A are 910B.
__attribute__((visibility("default"))) void atb_emulation_set_soc(const char* name) {
  const std::lock_guard<std::mutex> guard(device().lock);
  device().soc = name;
}

aclError aclInit(const char*) {
  const std::lock_guard<std::mutex> guard(device().lock);
  if (device().initialised) return ACL_ERROR_REPEAT_INITIALIZE;
  device().initialised = true;
  return ACL_SUCCESS;
}

aclError aclFinalize() {
  const std::lock_guard<std::mutex> guard(device().lock);
  device().initialised = device().set = false;
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t deviceId) {
  const std::lock_guard<std::mutex> guard(device().lock);
  if (!device().initialised) return fail(ACL_ERROR_UNINITIALIZE, "aclrtSetDevice before aclInit");
  if (deviceId != 0)
    return fail(ACL_ERROR_INVALID_PARAM,
                "aclrtSetDevice: there is no device " + std::to_string(deviceId) + ", only 0");
  device().set = true;
  device().id = deviceId;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t) {
  const std::lock_guard<std::mutex> guard(device().lock);
  device().set = false;
  return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t* deviceId) {
  const aclError error = need_device("aclrtGetDevice");
  if (error == ACL_SUCCESS) *deviceId = device().id;
  return error;
}

const char* aclrtGetSocName() { return device().soc.c_str(); }

aclError aclrtCreateStream(aclrtStream* stream) {
  const aclError error = need_device("aclrtCreateStream");
  if (error != ACL_SUCCESS) return error;
  const std::lock_guard<std::mutex> guard(device().lock);
  *stream = *device().streams.insert(new Stream).first;
  return ACL_SUCCESS;
}

aclError aclrtDestroyStream(aclrtStream stream) {
  const std::lock_guard<std::mutex> guard(device().lock);
  if (device().streams.erase(static_cast<Stream*>(stream)) == 0)
    return fail(ACL_ERROR_INVALID_PARAM, "aclrtDestroyStream: there is no such stream");
  delete static_cast<Stream*>(stream);
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  const std::lock_guard<std::mutex> guard(device().lock);
  const auto found = device().streams.find(static_cast<Stream*>(stream));
  if (found == device().streams.end())
    return fail(ACL_ERROR_INVALID_PARAM, "aclrtSynchronizeStream: there is no such stream");
  (*found)->pending = false;
  return ACL_SUCCESS;
}

aclError aclrtMalloc(void** devPtr, size_t size, aclrtMemMallocPolicy) {
  const aclError error = need_device("aclrtMalloc");
  if (error != ACL_SUCCESS) return error;
  if (devPtr == nullptr || size == 0)
    return fail(ACL_ERROR_INVALID_PARAM, "aclrtMalloc of 0 bytes");
  constexpr size_t block = 512;
  const size_t bytes = (size + block - 1) / block * block;
  *devPtr = std::aligned_alloc(block, bytes);
  if (*devPtr == nullptr)
    return fail(ACL_ERROR_BAD_ALLOC, "aclrtMalloc: no " + std::to_string(size) + " bytes left");
  std::memset(*devPtr, 0xff, bytes);  // not a number, so that what was never written is seen
  return ACL_SUCCESS;
}

aclError aclrtFree(void* devPtr) {
  std::free(devPtr);
  return ACL_SUCCESS;
}

aclError aclrtMemset(void* devPtr, size_t maxCount, int32_t value, size_t count) {
  if (devPtr == nullptr || count > maxCount)
    return fail(ACL_ERROR_INVALID_PARAM, "aclrtMemset: " + std::to_string(count) +
                                             " bytes into " + std::to_string(maxCount));
  std::memset(devPtr, value, count);
  return ACL_SUCCESS;
}

aclError aclrtMemcpy(void* dst, size_t destMax, const void* src, size_t count,
                     aclrtMemcpyKind kind) {
  if (kind == ACL_MEMCPY_DEVICE_TO_HOST && unfinished())
    return fail(ACL_ERROR_INVALID_PARAM,
                "aclrtMemcpy from the device before aclrtSynchronizeStream");
  return copy("aclrtMemcpy", dst, destMax, src, count);
}

aclError aclrtMemcpyAsync(void* dst, size_t destMax, const void* src, size_t count,
                          aclrtMemcpyKind, aclrtStream stream) {
  if (!emulation::use_stream(stream))
    return fail(ACL_ERROR_INVALID_PARAM, "aclrtMemcpyAsync: there is no such stream");
  return copy("aclrtMemcpyAsync", dst, destMax, src, count);
}

size_t aclDataTypeSize(aclDataType dataType) { return emulation::size_of(dataType); }
}
