#include "cpu/causal_conv.h"

#include "host.h"

namespace layerweave::ort {

namespace {

class CausalConv : public Kernel {
 public:
  void compute(const Call& call) const override {
    const auto x = call.input<float>(0), weight = call.input<float>(1), past = call.input<float>(3);
    const auto lengths = call.input<int64_t>(4);
    expect(x.shape.size() == 3 && weight.shape.size() == 3, "x [B, T, I] and weight [I, 1, K]", {&x.shape, &weight.shape});
    const int64_t batch = x.shape[0], tokens = x.shape[1], channels = x.shape[2], kernel = weight.shape[2];
    expect(weight.shape == Shape{channels, 1, kernel} && past.shape == Shape{batch, channels, kernel - 1}, "weight [I, 1, K] and past_state [B, I, K - 1] for x [B, T, I]",
           {&weight.shape, &past.shape, &x.shape});
    expect(lengths.shape == Shape{batch}, "lengths [B]", {&lengths.shape, &x.shape});
    const float* bias = nullptr;
    if (call.has(2)) {
      const auto given = call.input<float>(2);
      expect(given.shape == Shape{channels}, "bias [I]", {&given.shape, &x.shape});
      bias = given.data;
    }
    const cpu::CausalConvParams params = {batch,    tokens, channels,     kernel,    x.data, call.output<float>(0, x.shape), channels, channels, weight.data, bias,
                                          lengths.data, past.data, call.output<float>(1, past.shape)};
    succeed(cpu::causal_conv(params, parallel(call), cpu::best_isa()));
  }
};

std::unique_ptr<Kernel> create(const NodeInfo& node) {
  const std::string activation = node.text("activation");
  if (activation != "silu") throw OpError("activation must be silu, not " + activation);
  return std::make_unique<CausalConv>();
}

}  // namespace

const Definition& causal_conv() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static const Definition definition = {
      "CausalConv",
      nullptr,
      {{"x", f32}, {"weight", f32}, {"bias", f32, INPUT_OUTPUT_OPTIONAL}, {"past_state", f32}, {"lengths", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}},
      {{"y", f32}, {"present_state", f32}},
      {{"activation", "string"}},
      {0, 3},
      [](int** inputs, int** outputs) { return inplace_pairs({{3, 1}}, inputs, outputs); },
      create,
  };
  return definition;
}

}  // namespace layerweave::ort
