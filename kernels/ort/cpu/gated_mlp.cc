#include "cpu/moe.h"

#include "host.h"

namespace layerweave::ort {

namespace {

class GatedMlp : public Kernel {
 public:
  void compute(const Call& call) const override {
    const auto x = call.input<float>(0);
    const Shape gate = call.input<int8_t>(1).shape;
    expect(x.shape.size() == 2 && gate.size() == 2 && gate[1] == x.shape[1], "x [M, D] and gate [F, D]", {&x.shape, &gate});
    const int64_t d_ff = gate[0], d_model = gate[1];
    const cpu::ExpertWeights weights = {matrix(call, 1, d_ff, d_model), matrix(call, 2, d_ff, d_model), matrix(call, 3, d_model, d_ff)};
    cpu::GatedMlpParams params = {x.shape[0], d_model, d_ff, x.data, weights, call.output<float>(0, x.shape), nullptr};
    const Scratch scratch(call, cpu::gated_mlp_scratch(params));
    params.scratch = scratch.data();
    succeed(cpu::gated_mlp(params, parallel(call), cpu::best_isa()));
  }

 private:
  static cpu::WeightMatrix matrix(const Call& call, size_t index, int64_t rows, int64_t columns) {
    const auto weight = call.input<int8_t>(index);
    const auto scale = call.input<float>(index + 3);
    expect(weight.shape == Shape{rows, columns} && scale.shape == Shape{rows}, "gate and up [F, D], down [D, F] and a scale for each of their rows", {&weight.shape, &scale.shape});
    return {cpu::WeightType::kInt8, weight.data, scale.data};
  }
};

}  // namespace

const Definition& gated_mlp() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, i8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  static const Definition definition = {
      "GatedMlp",
      nullptr,
      {{"x", f32}, {"gate", i8}, {"up", i8}, {"down", i8}, {"gate_scale", f32}, {"up_scale", f32}, {"down_scale", f32}},
      {{"y", f32}},
      {},
      {0},
      nullptr,
      [](const NodeInfo&) -> std::unique_ptr<Kernel> { return std::make_unique<GatedMlp>(); },
  };
  return definition;
}

}  // namespace layerweave::ort
