// Graphs: ids, limits, order, arity, in place, ownership.
#include "core.hpp"

using namespace core;

namespace {

int destroyed = 0;

// An operation of the user's own, which counts how often it is destroyed.
class Counted : public Operation {
 public:
  ~Counted() override { ++destroyed; }
  std::string GetName() const override { return "Counted"; }
  Status InferShape(const SVector<TensorDesc>& in, SVector<TensorDesc>& out) const override {
    out = in;
    return NO_ERROR;
  }
  uint32_t GetInputNum() const override { return 1; }
  uint32_t GetOutputNum() const override { return 1; }
  Status Setup(const VariantPack&, uint64_t& size, Context*) override {
    size = 0;
    return NO_ERROR;
  }
  Status Execute(const VariantPack&, uint8_t*, uint64_t, Context*) override { return NO_ERROR; }
};

Operation* append() { return made(infer::ReshapeAndCacheParam()); }

// x, y: out = (x + y) + y
GraphParam sum_twice() {
  return graph(2, 1, 1, {node(add(), {0, 1}, {3}), node(add(), {3, 1}, {2})});
}

TEST(ids_are_inputs_then_outputs_then_internals) {
  const Machine machine;
  Memory memory;
  Owned sum;
  OK(CreateOperation(sum_twice(), &sum.operation));
  EXPECT(sum->GetInputNum() == 2 && sum->GetOutputNum() == 1 && sum->GetName() == "TestGraph");
  const Tensor x = memory.device(f32({2, 3}), 1), y = memory.device(f32({2, 3}), 10),
               out = memory.device(f32({2, 3}));
  OK(run(sum.operation, pack({x, y}, {out}), machine.context));
  EXPECT(at(out, 0) == 21 && at(out, 5) == 21);
}

TEST(an_id_beyond_the_tensors_is_refused) {
  REFUSED_GRAPH(graph(2, 1, 0, {node(add(), {0, 3}, {2})}),
                "TestGraph: node 0 (ElewiseOperation): has tensor id 3; the graph's ids end at 2");
}

TEST(at_most_256_inputs) {
  REFUSED_GRAPH(graph(257, 1, 0, {node(add(), {0, 1}, {257})}), "at most 256 inputs");
  Owned most;
  OK(CreateOperation(graph(256, 1, 0, {node(add(), {0, 1}, {256})}), &most.operation));
}

TEST(at_most_256_outputs) {
  REFUSED_GRAPH(graph(2, 257, 0, {node(add(), {0, 1}, {2})}), "257 tensors of a kind");
}

TEST(at_most_256_internals) {
  REFUSED_GRAPH(graph(2, 1, 257, {node(add(), {0, 1}, {2})}), "257 tensors of a kind");
}

TEST(at_most_1024_nodes) {
  GraphParam in_place = graph(2, 0, 0, {});
  for (int i = 0; i < 1024; ++i) in_place.nodes.push_back(node(add(), {0, 1}, {0}));
  Owned most;
  OK(CreateOperation(in_place, &most.operation));
  GraphParam more = graph(2, 0, 0, {});
  for (int i = 0; i < 1025; ++i) more.nodes.push_back(node(add(), {0, 1}, {0}));
  REFUSED_GRAPH(more, "a graph has 1025 nodes; at most 1024 are possible");
}

TEST(a_name_is_at_most_128_letters_digits_and_underscores) {
  GraphParam param = sum_twice();
  Owned sum;
  param.name = std::string(127, 'a') + "_";
  OK(CreateOperation(param, &sum.operation));
  for (const std::string& wrong : {std::string(129, 'a'), std::string("a-b"), std::string("a b")}) {
    GraphParam other = sum_twice();
    other.name = wrong;
    REFUSED_GRAPH(other, "at most 128 of [A-Za-z0-9_] are possible");
  }
}

TEST(an_input_of_a_node_is_assigned_before) {
  REFUSED_GRAPH(graph(2, 1, 1, {node(add(), {3, 1}, {2}), node(add(), {0, 1}, {3})}),
                "node 0 (ElewiseOperation): input 0 is tensor 3 (internal 0), which no node");
}

TEST(all_outputs_are_written) {
  REFUSED_GRAPH(graph(2, 2, 0, {node(add(), {0, 1}, {2})}), "tensor 3 (output 1) is never written");
}

TEST(all_internals_are_written) {
  REFUSED_GRAPH(graph(2, 1, 1, {node(add(), {0, 1}, {2})}),
                "tensor 3 (internal 0) is never written");
}

TEST(an_unused_input_is_legal) {
  Owned sum;
  OK(CreateOperation(graph(3, 1, 0, {node(add(), {0, 1}, {3})}), &sum.operation));
}

TEST(arity_is_that_of_the_operation) {
  REFUSED_GRAPH(graph(2, 1, 0, {node(add(), {0}, {2})}),
                "has 1 inputs and 1 outputs; wanted are 2 and 1");
  REFUSED_GRAPH(graph(2, 2, 0, {node(add(), {0, 1}, {2, 3})}),
                "has 2 inputs and 2 outputs; wanted are 2 and 1");
}

TEST(a_node_without_an_operation_is_refused) {
  REFUSED_GRAPH(graph(2, 1, 0, {node(nullptr, {0, 1}, {2})}), "node 0 has no operation");
}

TEST(two_nodes_with_one_operation_are_refused) {
  Operation* both = add();
  REFUSED_GRAPH(graph(2, 1, 1, {node(both, {0, 1}, {3}), node(both, {3, 1}, {2})}),
                "node 1 (ElewiseOperation) has the operation of a node before");
}

TEST(in_place_is_the_same_id_in_inputs_and_outputs) {
  const Machine machine;
  Memory memory;
  Owned sum;
  OK(CreateOperation(graph(2, 1, 0, {node(add(), {0, 1}, {2}), node(add(), {2, 1}, {2})}),
                     &sum.operation));
  const Tensor x = memory.device(f32({4}), 1), y = memory.device(f32({4}), 10),
               out = memory.device(f32({4}));
  OK(run(sum.operation, pack({x, y}, {out}), machine.context));
  EXPECT(at(out, 3) == 21);
}

TEST(reshape_and_cache_writes_its_inputs) {
  Owned kept;
  OK(CreateOperation(graph(5, 0, 0, {node(append(), {0, 1, 2, 3, 4}, {2, 3})}), &kept.operation));
  REFUSED_GRAPH(graph(5, 2, 0, {node(append(), {0, 1, 2, 3, 4}, {5, 6})}),
                "output 0 is tensor 5 (output 0); it has to be the tensor of input 2, tensor 2");
}

TEST(a_linear_is_not_written_in_place) {
  infer::LinearParam param;
  param.hasBias = false;
  REFUSED_GRAPH(graph(2, 0, 0, {node(made(param), {0, 1}, {0})}), "cannot write it in place");
}

TEST(a_second_write_is_fatal) {
  REFUSED_GRAPH(graph(2, 1, 0, {node(add(), {0, 1}, {2}), node(add(), {0, 1}, {2})}),
                "(ElewiseOperation): output 0 is tensor 2 (output 0), which has a value already");
  infer::SplitParam split;
  REFUSED_GRAPH(graph(1, 1, 0, {node(made(split), {0}, {1, 1})}),
                "writes tensor 1 (output 0) twice");
}

TEST(a_write_of_an_input_that_the_node_does_not_read_is_fatal) {
  REFUSED_GRAPH(graph(3, 0, 0, {node(add(), {0, 1}, {2})}),
                "output 0 is tensor 2 (input 2), which has a value already");
}

TEST(a_graph_destroys_its_operations) {
  destroyed = 0;
  Operation* owner = made(graph(1, 1, 0, {node(new Counted, {0}, {1})}));
  EXPECT(destroyed == 0);
  OK(DestroyOperation(owner));
  EXPECT(destroyed == 1);
}

TEST(a_refused_graph_leaves_its_operations_to_the_caller) {
  destroyed = 0;
  auto* kept = new Counted;
  Operation* none = nullptr;
  REFUSED(CreateOperation(graph(1, 2, 0, {node(kept, {0}, {1})}), &none), ERROR_INVALID_GRAPH,
          "never written");
  EXPECT(none == nullptr && destroyed == 0);
  OK(DestroyOperation(kept));
}

TEST(a_graph_in_a_graph) {
  const Machine machine;
  Memory memory;
  Owned outer;
  const Node inner = node(made(sum_twice()), {0, 1}, {3});
  OK(CreateOperation(graph(2, 1, 1, {inner, node(add(), {3, 0}, {2})}), &outer.operation));
  const Tensor x = memory.device(f32({4}), 1), y = memory.device(f32({4}), 10),
               out = memory.device(f32({4}));
  OK(run(outer.operation, pack({x, y}, {out}), machine.context));
  EXPECT(at(out, 0) == 22);
}

}  // namespace
