// Graphs of operations.
#pragma once
#include <string>
#include <vector>
#include "atb/atb_infer.h"
#include "check.hpp"
#include "log.hpp"

namespace emulation {

// Whether a graph may be made: limits, ids, order, arity, one write for every tensor.
atb::Status check_graph(const atb::GraphParam& param);

// "tensor 7 (internal 2)"
std::string tensor_text(const atb::GraphParam& param, uint32_t id);

// Between which nodes a tensor holds a value. Inputs have it before the first node, outputs after
// the last one.
struct Life {
  int64_t first = -1, last = -1;
};
std::vector<Life> lives_of(const atb::GraphParam& param);

// Where internal tensors lie in the workspace, of which they share what is free.
struct Places {
  std::vector<uint64_t> offsets;  // by internal tensor
  uint64_t bytes = 0;
};
Places place(const atb::GraphParam& param, const std::vector<Life>& lives,
             const std::vector<atb::TensorDesc>& descs);

class GraphOperation : public atb::Operation {
 public:
  explicit GraphOperation(const atb::GraphParam& param);
  ~GraphOperation() override;
  GraphOperation(const GraphOperation&) = delete;
  GraphOperation& operator=(const GraphOperation&) = delete;

  std::string GetName() const override { return param_.name.empty() ? "graph" : param_.name; }
  uint32_t GetInputNum() const override { return param_.inTensorNum; }
  uint32_t GetOutputNum() const override { return param_.outTensorNum; }
  atb::Status InferShape(const Descs& in, Descs& out) const override;
  atb::Status Setup(const atb::VariantPack& pack, uint64_t& workspace_size,
                    atb::Context* context) override;
  atb::Status Execute(const atb::VariantPack& pack, uint8_t* workspace, uint64_t workspace_size,
                      atb::Context* context) override;

 private:
  using AllDescs = std::vector<atb::TensorDesc>;  // by tensor id
  using Packs = std::vector<atb::VariantPack>;    // by node

  atb::Status InferAll(const Descs& in, AllDescs& all, Packs& packs) const;
  atb::Status InferNode(size_t index, AllDescs& all, atb::VariantPack& made) const;
  atb::Status SeenDesc(const atb::Node& node, size_t input, const AllDescs& all,
                       atb::TensorDesc& seen) const;
  atb::Status SetUpAll(const atb::VariantPack& pack, atb::Context* context);
  atb::Status SetUpNodes(const atb::VariantPack& pack, atb::Context* context, uint64_t& most);
  atb::Status CheckOverlaps(const atb::VariantPack& pack) const;
  void Bind(size_t index, const atb::VariantPack& pack, uint8_t* workspace);
  std::string Where(size_t index) const;

  atb::GraphParam param_;
  std::vector<Life> lives_;
  SetUp set_up_;
  Places places_;
  Packs packs_;
  std::vector<uint64_t> kernel_workspace_;  // by node
};

}  // namespace emulation
