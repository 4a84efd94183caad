#include "cpu/moe.h"

#include "host.h"

namespace layerweave::ort {

namespace {

/// The experts' weights, as the kernel takes them.
struct Experts {
  int64_t d_model, d_ff;
  std::vector<cpu::ExpertWeights> weights;
};

/// From as many inputs as the op has, `at` the index of each.
template <class At>
Experts experts_from(size_t inputs, size_t experts, At&& at) {
  const size_t first_scale = 2 + 3 * experts;
  if (inputs != first_scale && inputs != first_scale + 3 * experts)
    throw OpError("expected gate, up and down weights of " + std::to_string(experts) + " experts, and int8 ones' scales after them; got " + std::to_string(inputs - 2) + " tensors");
  const bool quantized = inputs != first_scale;
  const Tensor first = at(2);
  if (quantized ? first.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : first.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && first.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
    throw OpError(quantized ? "expected int8 weights where there are scales" : "expected float32 or bfloat16 weights where there are no scales");
  expect(first.shape.size() == 2, "gate [F, D]", {&first.shape});
  const int64_t d_ff = first.shape[0], d_model = first.shape[1];
  // Weight i among those of all experts, [rows, columns].
  const auto matrix = [&](size_t i, int64_t rows, int64_t columns) -> cpu::WeightMatrix {
    const Tensor weight = at(2 + i);
    if (weight.type != first.type) throw OpError("expected weights of one type");
    expect(weight.shape == Shape{rows, columns}, "gate and up [F, D] and down [D, F], F the same for every expert", {&weight.shape, &first.shape});
    if (!quantized) return {weight.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? cpu::WeightType::kFloat32 : cpu::WeightType::kBFloat16, weight.data, nullptr};
    const Tensor scales = at(first_scale + i);
    if (scales.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw OpError("expected float32 scales");
    expect(scales.shape == Shape{rows}, "a scale for each row of a weight", {&scales.shape, &weight.shape});
    return {cpu::WeightType::kInt8, weight.data, static_cast<const float*>(scales.data)};
  };
  Experts made = {d_model, d_ff, {}};
  for (size_t e = 0; e < experts; ++e) made.weights.push_back({matrix(3 * e, d_ff, d_model), matrix(3 * e + 1, d_ff, d_model), matrix(3 * e + 2, d_model, d_ff)});
  return made;
}

class MoE : public Kernel {
 public:
  MoE(int64_t experts, int64_t top_k, cpu::RouterOrder order, bool renormalise, std::optional<Experts> constant)
      : experts_(experts), top_k_(top_k), order_(order), renormalise_(renormalise), constant_(std::move(constant)) {}

  void compute(const Call& call) const override {
    const auto x = call.input<float>(0), router = call.input<float>(1);
    expect(x.shape.size() == 2 && router.shape == Shape{experts_, x.shape[1]}, "x [M, D] and router [E, D]", {&x.shape, &router.shape});
    std::optional<Experts> given;
    if (!constant_) given = experts_from(call.input_count(), static_cast<size_t>(experts_), [&](size_t i) { return call.tensor(i); });
    const Experts& experts = constant_ ? *constant_ : *given;
    if (experts.d_model != x.shape[1]) throw OpError("expected weights of D " + std::to_string(x.shape[1]) + ", as x has; got " + std::to_string(experts.d_model));
    cpu::MoeParams params = {x.shape[0], experts.d_model, experts.d_ff, experts_, top_k_, order_, renormalise_, x.data, router.data, experts.weights.data(), call.output<float>(0, x.shape), nullptr};
    const Scratch scratch(call, cpu::moe_scratch(params));
    params.scratch = scratch.data();
    succeed(cpu::moe(params, parallel(call), cpu::best_isa()));
  }

 private:
  int64_t experts_, top_k_;
  cpu::RouterOrder order_;
  bool renormalise_;
  /// Null: the weights aren't constant. To find a hundred inputs in every call took a twentieth of the time of a token.
  std::optional<Experts> constant_;
};

std::optional<Experts> constant_experts(const NodeInfo& node, size_t experts) {
  std::vector<std::optional<Tensor>> inputs(2);
  for (size_t i = 2; i < node.input_count(); ++i) {
    inputs.push_back(node.constant(i));
    if (!inputs.back()) return std::nullopt;
  }
  return experts_from(inputs.size(), experts, [&](size_t i) { return *inputs[i]; });
}

std::unique_ptr<Kernel> create(const NodeInfo& node) {
  const int64_t experts = node.integer("n_experts"), top_k = node.integer("top_k");
  const std::string router = node.text("router");
  if (top_k < 1 || top_k > experts) throw OpError("expected top_k from 1 to n_experts; got " + print({top_k, experts}));
  if (router != "softmax-then-top-k" && router != "top-k-then-softmax") throw OpError("router must be softmax-then-top-k or top-k-then-softmax, not " + router);
  const auto order = router == "softmax-then-top-k" ? cpu::RouterOrder::kSoftmaxThenTopK : cpu::RouterOrder::kTopKThenSoftmax;
  return std::make_unique<MoE>(experts, top_k, order, node.integer("renormalise") != 0, constant_experts(node, static_cast<size_t>(experts)));
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
