// Shapes: InferShape through graphs, reshapes, chunks, the checks of every operation, sizes.
#include "core.hpp"

using namespace core;

namespace {

Node reshaped(Node made, size_t input, ReshapeFunc function) {
  made.inTensorReshapeFuncs.resize(made.inTensorIds.size());
  made.inTensorReshapeFuncs[input] = std::move(function);
  return made;
}

void flat(const Dims& from, Dims& to) {
  to.dimNum = 1;
  to.dims[0] = 1;
  for (uint64_t i = 0; i < from.dimNum; ++i) to.dims[0] *= from.dims[i];
}

// x, flat: out = x seen flat + flat
GraphParam flat_sum(ReshapeFunc function) {
  return graph(2, 1, 0, {reshaped(node(add(), {0, 1}, {2}), 0, std::move(function))});
}

Status inferred(const Owned& operation, const std::vector<TensorDesc>& in,
                SVector<TensorDesc>* out = nullptr) {
  SVector<TensorDesc> ignored;
  return operation->InferShape(descs(in), out == nullptr ? ignored : *out);
}

TEST(infer_shape_goes_through_the_nodes) {
  Owned sum;
  OK(CreateOperation(flat_sum(flat), &sum.operation));
  SVector<TensorDesc> out;
  OK(inferred(sum, {f16({2, 3}), f16({6})}, &out));
  EXPECT(out.size() == 1 && out[0].dtype == ACL_FLOAT16 && out[0].shape.dimNum == 1);
  EXPECT(out[0].shape.dims[0] == 6 && out[0].format == ACL_FORMAT_ND);
  REFUSED(inferred(sum, {f16({2, 3}), f32({6})}), ERROR_INVALID_TENSOR_INI_MATCH,
          "TestGraph: node 0, ElewiseOperation: input 1 (other) is f32 nd; Add on the 910B takes "
          "f16 nd here");
}

TEST(infer_shape_func_is_used_where_it_is_set) {
  GraphParam param = flat_sum(flat);
  param.inferShapeFunc = [](const SVector<TensorDesc>& in, SVector<TensorDesc>& out) -> Status {
    out.at(0) = in.at(1);
    out.at(0).shape.dims[0] = 7;
    return in.at(1).shape.dims[0] == 6 ? NO_ERROR : ERROR_INVALID_PARAM;
  };
  Owned sum;
  OK(CreateOperation(param, &sum.operation));
  SVector<TensorDesc> out;
  OK(inferred(sum, {f16({2, 3}), f16({6})}, &out));
  EXPECT(out[0].shape.dims[0] == 7);
  REFUSED(inferred(sum, {f16({2, 3}), f16({5})}), ERROR_GRAPH_INFERSHAPE_FUNC_FAIL,
          "inferShapeFunc failed");
}

TEST(a_reshape_to_another_number_of_elements_is_fatal) {
  Owned sum;
  OK(CreateOperation(flat_sum([](const Dims&, Dims& to) {
                       to.dimNum = 1;
                       to.dims[0] = 5;
                     }),
                     &sum.operation));
  REFUSED(inferred(sum, {f16({2, 3}), f16({5})}), ERROR_GRAPH_NODE_RESHAPE_FUNC_FAIL,
          "node 0, ElewiseOperation: input 0, tensor 0 (input 0) f16[2, 3] is reshaped to [5]");
}

TEST(a_new_shape_arrives_with_dim_num_0) {
  uint64_t arrived = 99;
  Owned sum, wrong;
  OK(CreateOperation(flat_sum([&arrived](const Dims& from, Dims& to) {
                       arrived = to.dimNum;
                       flat(from, to);
                     }),
                     &sum.operation));
  OK(inferred(sum, {f16({2, 3}), f16({6})}));
  EXPECT(arrived == 0);
  OK(CreateOperation(flat_sum([](const Dims&, Dims& to) { to.dims[0] = 6; }), &wrong.operation));
  REFUSED(inferred(wrong, {f16({2, 3}), f16({6})}), ERROR_GRAPH_NODE_RESHAPE_FUNC_FAIL,
          "its reshape function leaves dimNum at 0");
}

TEST(more_reshapes_than_inputs_are_refused) {
  Node one = node(add(), {0, 1}, {2});
  one.inTensorReshapeFuncs.resize(3);
  REFUSED_GRAPH(graph(2, 1, 0, {one}), "more reshape functions than inputs");
}

TEST(a_chunk_is_an_equal_part_of_axis_0) {
  const Machine machine;
  Memory memory;
  Node one = node(add(), {0, 0}, {1});
  one.inTensorChunks.resize(2);
  one.inTensorChunks[0] = {2, 0};
  one.inTensorChunks[1] = {2, 1};
  Owned halves;
  OK(CreateOperation(graph(1, 1, 0, {one}), &halves.operation));
  const Tensor x = memory.device(f32({4}), 1), out = memory.device(f32({2}));
  static_cast<float*>(x.deviceData)[3] = 5;
  OK(run(halves.operation, pack({x}, {out}), machine.context));
  EXPECT(at(out, 0) == 2 && at(out, 1) == 6);
  REFUSED(inferred(halves, {f32({3})}), ERROR_INVALID_GRAPH_NODE_CHUNK, "has no 2 equal parts");
  Node wrong = node(add(), {0, 0}, {1});
  wrong.inTensorChunks.resize(1);
  wrong.inTensorChunks[0] = {2, 2};
  refuse_graph(graph(1, 1, 0, {wrong}), ERROR_INVALID_GRAPH_NODE_CHUNK, "chunk 2 of 2", __FILE__,
               __LINE__);
}

TEST(the_number_of_inputs_is_checked_first) {
  const Owned sum{add()};
  REFUSED(inferred(sum, {f16({})}), ERROR_INVALID_IN_TENSOR_NUM,
          "ElewiseOperation: 1 inputs are given; there are 2");
}

TEST(a_tensor_has_1_to_8_dims) {
  const Owned sum{add()};
  REFUSED(inferred(sum, {f16({}), f16({1})}), ERROR_INVALID_TENSOR_DIM_NUM,
          "input 0 (x) has 0 dims; 1 to 8 are possible");
  TensorDesc nine = f16({1});
  nine.shape.dimNum = 9;
  REFUSED(inferred(sum, {f16({1}), nine}), ERROR_INVALID_TENSOR_DIM_NUM,
          "input 1 (other) has 9 dims");
}

TEST(sizes_are_greater_than_0) {
  const Owned sum{add()};
  REFUSED(inferred(sum, {f16({2, 0}), f16({2, 0})}), ERROR_INVALID_TENSOR_DIM,
          "input 0 (x) is f16[2, 0]; sizes are greater than 0");
  REFUSED(inferred(sum, {f16({2}), f16({-2})}), ERROR_INVALID_TENSOR_DIM, "f16[-2]");
}

TEST(a_tensor_has_at_most_256_gb) {
  const Owned sum{add()};
  OK(inferred(sum, {f16({1 << 20, 1 << 17}), f16({1 << 20, 1 << 17})}));
  REFUSED(inferred(sum, {f16({1 << 20, (1 << 17) + 1}), f16({1})}), ERROR_INVALID_TENSOR_SIZE,
          "at most 256 GB");
  REFUSED(inferred(sum, {f16({int64_t{1} << 40, int64_t{1} << 40}), f16({1})}),
          ERROR_INVALID_TENSOR_SIZE, "at most 256 GB");
}

TEST(a_dtype_or_format_that_is_not_in_the_table_is_error_13) {
  const Owned product{mul()};
  REFUSED(inferred(product, {f32({2}), f32({2})}), ERROR_INVALID_TENSOR_INI_MATCH,
          "ElewiseOperation: input 0 (x) is f32 nd; Mul on the 910B takes f16|bf16 nd here");
  REFUSED(inferred(product, {f16({2}), desc(ACL_FLOAT16, {2, 2}, ACL_FORMAT_NCHW)}),
          ERROR_INVALID_TENSOR_INI_MATCH, "input 1 (other) is f16 nchw");
  REFUSED(inferred(product, {desc(ACL_DT_UNDEFINED, {2}), f16({2})}),
          ERROR_INVALID_TENSOR_INI_MATCH, "undefined dtype");
}

TEST(dims_are_checked_before_the_table) {
  const Owned product{mul()};
  REFUSED(inferred(product, {f32({0}), f32({2})}), ERROR_INVALID_TENSOR_DIM, "f32[0]");
}

TEST(the_310p_has_no_bf16) {
  const Machine machine("Ascend310P3");
  EXPECT(std::string(aclrtGetSocName()) == "Ascend310P3");
  const Owned sum{add()};
  REFUSED(inferred(sum, {desc(ACL_BF16, {2}), desc(ACL_BF16, {2})}), ERROR_INVALID_TENSOR_DTYPE,
          "input 0 (x) is bf16[2]; the 310P has no bf16");
  OK(inferred(sum, {f16({2}), f16({2})}));
}

TEST(the_310b_and_the_910a_have_no_bf16_either) {
  for (const char* soc : {"Ascend310B4", "Ascend910A"}) {
    const Machine machine(soc);
    const Owned sum{add()};
    REFUSED(inferred(sum, {desc(ACL_BF16, {2}), desc(ACL_BF16, {2})}), ERROR_INVALID_TENSOR_DTYPE,
            "has no bf16");
  }
  const Machine machine("Ascend910_9382");
  const Owned sum{add()};
  OK(inferred(sum, {desc(ACL_BF16, {2}), desc(ACL_BF16, {2})}));
}

TEST(caches_are_nd_on_the_910b_and_nz_on_the_310p) {
  const Owned append{made(infer::ReshapeAndCacheParam())};
  const TensorDesc rows = f16({3, 2, 16}), slots = desc(ACL_INT32, {3}),
                   nd = f16({4, 16, 2, 16}),
                   nz = desc(ACL_FLOAT16, {4, 2, 16, 16}, ACL_FORMAT_FRACTAL_NZ);
  OK(inferred(append, {rows, rows, nd, nd, slots}));
  REFUSED(inferred(append, {rows, rows, nz, nz, slots}), ERROR_INVALID_TENSOR_INI_MATCH,
          "input 2 (keyCache) is f16 nz; ReshapeAndCache on the 910B takes f16 nd here");
  const Machine machine("Ascend310P3");
  OK(inferred(append, {rows, rows, nz, nz, slots}));
  REFUSED(inferred(append, {rows, rows, nd, nd, slots}), ERROR_INVALID_TENSOR_INI_MATCH,
          "ReshapeAndCache on the 310P takes f16 nz here");
}

TEST(sizes_in_nz_are_padded_to_blocks) {
  const auto nz = [](const std::vector<int64_t>& shape, aclDataType dtype = ACL_FLOAT16) {
    return Utils::GetTensorSize(desc(dtype, shape, ACL_FORMAT_FRACTAL_NZ));
  };
  EXPECT(nz({8, 2, 112, 16}) == 8 * 2 * 112 * 16 * 2);
  EXPECT(nz({8, 100, 30}) == nz({8, 2, 112, 16}));
  EXPECT(nz({100, 30}) == 112 * 32 * 2);
  EXPECT(nz({100, 33}, ACL_INT8) == 112 * 64);
  EXPECT(Utils::GetTensorSize(f16({100, 30})) == 6000 && Utils::GetTensorNumel(f32({3, 5})) == 15);
}

TEST(nz_ends_in_blocks_of_16) {
  infer::LinearParam param;
  param.hasBias = false;
  const Owned linear{made(param)};
  const auto nz = [](const std::vector<int64_t>& shape) {
    return desc(ACL_FLOAT16, shape, ACL_FORMAT_FRACTAL_NZ);
  };
  OK(inferred(linear, {f16({2, 32}), nz({1, 2, 16, 16})}));
  REFUSED(inferred(linear, {f16({2, 32}), nz({1, 4, 16, 8})}), ERROR_INVALID_TENSOR_DIM,
          "in nz its last size is 16 and the one before is a multiple of 16");
}

TEST(rsv_bytes_have_to_be_0) {
  infer::RopeParam param;
  param.rsv[3] = 1;
  Operation* none = nullptr;
  REFUSED(CreateOperation(param, &none), ERROR_INVALID_PARAM, "rsv has bytes that are not 0");
  infer::RmsNormParam norm;
  norm.layerType = infer::RmsNormParam::RMS_NORM_NORM;
  norm.normParam.rsv[0] = 7;
  REFUSED(CreateOperation(norm, &none), ERROR_INVALID_PARAM, "rsv");
  EXPECT(none == nullptr);
}

TEST(a_vector_has_place_for_64_until_more_is_reserved_and_256_at_most) {
  SVector<int> vector;
  for (int i = 0; i < 64; ++i) vector.push_back(i);
  const auto throws = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const std::out_of_range&) {
      return true;
    }
    return false;
  };
  EXPECT(throws([&] { vector.push_back(64); }) && vector.size() == 64);
  vector.reserve(65);
  vector.push_back(64);
  EXPECT(vector.at(64) == 64 && throws([&] { vector.push_back(65); }));
  EXPECT(throws([&] { vector.reserve(257); }) && throws([&] { vector.at(65) = 1; }));
  vector.resize(255);
  EXPECT(throws([&] { vector.resize(257); }));
  SVector<int> two = {7, 9};
  two.insert(1, 8);
  EXPECT(two == (SVector<int>{7, 8, 9}));
}

}  // namespace
