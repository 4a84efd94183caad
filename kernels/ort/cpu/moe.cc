#include "cpu/moe.h"

#include "host.h"

namespace layerweave::ort {

namespace {

class MoE : public Kernel {
 public:
  MoE(int64_t experts, int64_t top_k, cpu::RouterOrder order, bool renormalise) : experts_(experts), top_k_(top_k), order_(order), renormalise_(renormalise) {}

  void compute(const Call& call) const override {
    const auto x = call.input<float>(0), router = call.input<float>(1);
    expect(x.shape.size() == 2 && router.shape == Shape{experts_, x.shape[1]}, "x [M, D] and router [E, D]", {&x.shape, &router.shape});
    const size_t experts = static_cast<size_t>(experts_), first_scale = 2 + 3 * experts;
    if (call.input_count() != first_scale && call.input_count() != first_scale + 3 * experts)
      throw OpError("expected gate, up and down weights of " + std::to_string(experts) + " experts, and int8 ones' scales after them; got " + std::to_string(call.input_count() - 2) + " tensors");
    const bool quantized = call.input_count() != first_scale;
    const auto type = call.element_type(2);
    if (quantized ? type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && type != ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
      throw OpError(quantized ? "expected int8 weights where there are scales" : "expected float32 or bfloat16 weights where there are no scales");
    const int64_t d_model = x.shape[1];
    const Shape first = call.input<void>(2).shape;
    const int64_t d_ff = first.empty() ? 0 : first[0];
    // Weight i among those of all experts, [rows, columns].
    const auto matrix = [&](size_t i, int64_t rows, int64_t columns) -> cpu::WeightMatrix {
      if (call.element_type(2 + i) != type) throw OpError("expected weights of one type");
      const auto weight = call.input<void>(2 + i);
      expect(weight.shape == Shape{rows, columns}, "gate and up [F, D] and down [D, F], F the same for every expert", {&weight.shape, &x.shape});
      if (!quantized) return {type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? cpu::WeightType::kFloat32 : cpu::WeightType::kBFloat16, weight.data, nullptr};
      if (call.element_type(first_scale + i) != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw OpError("expected float32 scales");
      const auto scales = call.input<float>(first_scale + i);
      expect(scales.shape == Shape{rows}, "a scale for each row of a weight", {&scales.shape, &weight.shape});
      return {cpu::WeightType::kInt8, weight.data, scales.data};
    };
    std::vector<cpu::ExpertWeights> weights;
    for (size_t e = 0; e < experts; ++e) weights.push_back({matrix(3 * e, d_ff, d_model), matrix(3 * e + 1, d_ff, d_model), matrix(3 * e + 2, d_model, d_ff)});
    cpu::MoeParams params = {x.shape[0], d_model, d_ff, experts_, top_k_, order_, renormalise_, x.data, router.data, weights.data(), call.output<float>(0, x.shape), nullptr};
    const Scratch scratch(call, cpu::moe_scratch(params));
    params.scratch = scratch.data();
    succeed(cpu::moe(params, parallel(call), cpu::best_isa()));
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
      nullptr,
      {{"x", f32}, {"router", f32}, {"experts...", ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, INPUT_OUTPUT_VARIADIC}},
      {{"y", f32}},
      {{"n_experts", "int"}, {"top_k", "int"}, {"router", "string"}, {"renormalise", "int"}},
      {0},
      nullptr,
      create,
  };
  return definition;
}

}  // namespace layerweave::ort
