// The frame of every single operation: it does all that ATB does for any operation, so that one
// says only what it takes, which shapes follow and what it computes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>
#include "atb/atb_infer.h"
#include "check.hpp"
#include "log.hpp"

namespace emulation {

using atb::Status;
using atb::TensorDesc;

// Where the data of an input has to be.
enum class Place {
  Device,        // deviceData
  Host,          // hostData (int32), which Setup reads; deviceData may be null
  HostAndDevice  // both
};

struct Input {
  const char* name;  // as in the table of types and in sentences
  Place place = Place::Device;
};

struct Output {
  const char* name;
  // Inputs whose memory it may be. Overlapping any other input is refused.
  std::vector<uint32_t> may_be = {};
  // It has to be the memory of may_be[0].
  bool in_place = false;
};

// `table` is the name of the rows in tables.cpp; names of inputs and outputs are those there.
struct Signature {
  const char* table;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
};

// Done before an operation's own functions are called: the number of tensors, dims 1..8 and > 0,
// the table of dtypes and formats, bf16 on 310P, hostData of host inputs. Done before Run: Setup
// was called with the same shapes, dtypes and host values, dataSize, null pointers, overlaps,
// workspace, Context, stream.
class SingleOperation : public atb::Operation {
 public:
  // `name` is what sentences call it: "LinearOperation".
  SingleOperation(std::string name, Signature signature);

  std::string GetName() const final { return name_; }
  uint32_t GetInputNum() const final { return static_cast<uint32_t>(signature_.inputs.size()); }
  uint32_t GetOutputNum() const final { return static_cast<uint32_t>(signature_.outputs.size()); }
  Status InferShape(const Descs& in, Descs& out) const final;
  Status Setup(const atb::VariantPack& pack, uint64_t& workspace_size, atb::Context* context) final;
  Status Execute(const atb::VariantPack& pack, uint8_t* workspace, uint64_t workspace_size,
                 atb::Context* context) final;

  const Signature& signature() const { return signature_; }

 protected:
  // Checks the shapes and fills `out`, which has GetOutputNum() empty descs on arrival. Returns
  // atb::NO_ERROR or fail(code, sentence); the frame puts the operation's name before it.
  virtual Status Infer(const Descs& in, Descs& out) const = 0;
  // Checks the values of host inputs against the shapes; reads them by Host().
  virtual Status CheckHost(const Descs& in) const;
  // Bytes that Run wants beside its tensors.
  virtual uint64_t WorkspaceSize(const Descs& in) const;
  // Computes. Tensors are pack.inTensors[i].deviceData (null for host inputs, perhaps).
  virtual Status Run(const atb::VariantPack& pack, uint8_t* workspace) = 0;

  // The values of a host input, as they were at Setup.
  const std::vector<int32_t>& Host(uint32_t input) const { return host_.at(input); }

 private:
  Status InferAll(const Descs& in, Descs& out) const;
  Status SetUpAll(const atb::VariantPack& pack, atb::Context* context);
  Status ReadHost(const atb::VariantPack& pack);
  Status CheckData(const atb::VariantPack& pack) const;

  std::string name_;
  Signature signature_;
  SetUp set_up_;
  std::vector<std::vector<int32_t>> host_;
};

// Whether all reserved bytes are 0, as ATB demands.
template <size_t N>
bool zeros(const uint8_t (&rsv)[N]) {
  for (uint8_t byte : rsv)
    if (byte != 0) return false;
  return true;
}

// The whole of CreateOperation for an operation whose class has
// `static Status Check(const Param&)` (its own rsv is checked here; those of structs in it are
// not) and a constructor from the param:
//
//   template <>
//   Status atb::CreateOperation(const atb::infer::RopeParam& param, atb::Operation** operation) {
//     return emulation::create<emulation::Rope>("RopeOperation", param, operation);
//   }
template <class Op, class Param>
Status create(const std::string& name, const Param& param, atb::Operation** operation) {
  if (operation == nullptr) return fail(atb::ERROR_INVALID_PARAM, name + ": operation is null");
  *operation = nullptr;
  if (!zeros(param.rsv))
    return fail(atb::ERROR_INVALID_PARAM,
                name + ": rsv has bytes that are not 0; value-initialise the param");
  const Status status = Op::Check(param);
  if (status != atb::NO_ERROR) return within(name + ": ", status);
  *operation = new Op(param);
  return atb::NO_ERROR;
}

// Whether the emulated SoC is a 310P, or a 310B or 910A, which have no bf16 either (else a 910B).
bool is_310p();

}  // namespace emulation
