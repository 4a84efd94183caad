#include "cpu/moe.h"

#include "op.h"

namespace layerweave::ort {

namespace {

class MoE : public Kernel {
 public:
  MoE(int64_t experts, int64_t top_k, cpu::RouterOrder order, bool renormalise) : experts_(experts), top_k_(top_k), order_(order), renormalise_(renormalise) {}

  void compute(const Call& call) const override {
    const auto x = call.input<float>(0), router = call.input<float>(1);
    expect(x.shape.size() == 2 && router.shape == Shape{experts_, x.shape[1]}, "x [M, D] and router [E, D]", {&x.shape, &router.shape});
    if (call.input_count() != static_cast<size_t>(2 + 3 * experts_))
      throw OpError("expected gate, up and down weights of " + std::to_string(experts_) + " experts; got " + std::to_string(call.input_count() - 2) + " tensors");
    const int64_t d_model = x.shape[1];
    int64_t d_ff = 0;
    std::vector<cpu::ExpertWeights> weights;
    for (size_t e = 0; e < static_cast<size_t>(experts_); ++e) {
      const auto gate = call.input<float>(2 + 3 * e), up = call.input<float>(3 + 3 * e), down = call.input<float>(4 + 3 * e);
      if (e == 0) d_ff = gate.shape.empty() ? 0 : gate.shape[0];
      expect(gate.shape == Shape{d_ff, d_model} && up.shape == gate.shape && down.shape == Shape{d_model, d_ff}, "gate and up [F, D] and down [D, F], F the same for every expert",
             {&gate.shape, &up.shape, &down.shape, &x.shape});
      const auto matrix = [](const float* data) { return cpu::WeightMatrix{cpu::WeightType::kFloat32, data, nullptr}; };
      weights.push_back({matrix(gate.data), matrix(up.data), matrix(down.data)});
    }
    cpu::MoeParams params = {x.shape[0], d_model, d_ff, experts_, top_k_, order_, renormalise_, x.data, router.data, weights.data(), call.output(0, x.shape), nullptr};
    const auto scratch = call.scratch(cpu::moe_scratch(params));
    params.scratch = scratch.data();
    succeed(cpu::moe(params, call.parallel(), cpu::best_isa()));
  }

 private:
  int64_t experts_, top_k_;
  cpu::RouterOrder order_;
  bool renormalise_;
};

std::unique_ptr<Kernel> create(const NodeInfo& node) {
  const int64_t experts = node.integer("n_experts"), top_k = node.integer("top_k");
  const std::string router = node.text("router");
  if (top_k < 1 || top_k > experts) throw OpError("expected top_k from 1 to n_experts; got " + print({top_k, experts}));
  if (router != "softmax-then-top-k" && router != "top-k-then-softmax") throw OpError("router must be softmax-then-top-k or top-k-then-softmax, not " + router);
  const auto order = router == "softmax-then-top-k" ? cpu::RouterOrder::kSoftmaxThenTopK : cpu::RouterOrder::kTopKThenSoftmax;
  return std::make_unique<MoE>(experts, top_k, order, node.integer("renormalise") != 0);
}

}  // namespace

const Definition& moe() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Definition definition = {
      "MoE",
      {{"x", f32}, {"router", f32}, {"experts...", f32, INPUT_OUTPUT_VARIADIC}},
      {{"y", f32}},
      {{"n_experts", "int"}, {"top_k", "int"}, {"router", "string"}, {"renormalise", "int"}},
      {0},
      nullptr,
      create,
  };
  return definition;
}

}  // namespace layerweave::ort
