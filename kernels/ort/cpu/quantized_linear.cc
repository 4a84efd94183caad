#include "cpu/linear.h"

#include "host.h"

namespace layerweave::ort {

namespace {

class QuantizedLinear : public Kernel {
 public:
  void compute(const Call& call) const override {
    const auto x = call.input<float>(0), scale = call.input<float>(2);
    const auto weight = call.input<int8_t>(1);
    expect(x.shape.size() == 2 && weight.shape.size() == 2 && weight.shape[1] == x.shape[1] && x.shape[1] > 0, "x [M, in] and weight [out, in], in at least 1", {&x.shape, &weight.shape});
    const int64_t rows = x.shape[0], depth = x.shape[1], width = weight.shape[0];
    expect(scale.shape == Shape{width}, "scale [out]", {&scale.shape, &weight.shape});
    const float* bias = nullptr;
    if (call.has(3)) {
      const auto given = call.input<float>(3);
      expect(given.shape == Shape{width}, "bias [out]", {&given.shape, &weight.shape});
      bias = given.data;
    }
    cpu::LinearParams params = {rows, depth, width, x.data, weight.data, scale.data, bias, call.output<float>(0, {rows, width}), nullptr};
    const Scratch scratch(call, cpu::linear_scratch(params));
    params.scratch = scratch.data();
    cpu::linear(params, parallel(call), cpu::best_isa());
  }
};

}  // namespace

const Definition& quantized_linear() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, i8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  static const Definition definition = {
      "QuantizedLinear",
      nullptr,
      {{"x", f32}, {"weight", i8}, {"scale", f32}, {"bias", f32, INPUT_OUTPUT_OPTIONAL}},
      {{"y", f32}},
      {},
      {{0, Extent{nullptr, {{1, 0}}}}},
      nullptr,
      [](const NodeInfo&) -> std::unique_ptr<Kernel> { return std::make_unique<QuantizedLinear>(); },
  };
  return definition;
}

}  // namespace layerweave::ort
