#include "cpu/selective_scan.h"

#include "host.h"

namespace layerweave::ort {

namespace {

class SelectiveScan : public Kernel {
 public:
  void compute(const Call& call) const override {
    const auto u = call.input<float>(0), delta = call.input<float>(1), a_log = call.input<float>(2), b = call.input<float>(3), c = call.input<float>(4);
    const auto d = call.input<float>(5), bias = call.input<float>(6), z = call.input<float>(7), past = call.input<float>(8);
    const auto lengths = call.input<int64_t>(9);
    expect(u.shape.size() == 3 && past.shape.size() == 3, "u [B, T, I] and past_state [B, I, N]", {&u.shape, &past.shape});
    const int64_t batch = u.shape[0], tokens = u.shape[1], channels = u.shape[2], states = past.shape[2];
    const Shape wide = u.shape, narrow = {batch, tokens, states}, per_channel = {channels};
    expect(delta.shape == wide && z.shape == wide, "delta and z like u", {&delta.shape, &z.shape, &u.shape});
    expect(b.shape == narrow && c.shape == narrow, "B and C [B, T, N]", {&b.shape, &c.shape, &u.shape, &past.shape});
    expect(a_log.shape == Shape{channels, states} && past.shape == Shape{batch, channels, states}, "A_log [I, N] and past_state [B, I, N]", {&a_log.shape, &past.shape, &u.shape});
    expect(d.shape == per_channel && bias.shape == per_channel, "D and delta_bias [I]", {&d.shape, &bias.shape, &u.shape});
    expect(lengths.shape == Shape{batch}, "lengths [B]", {&lengths.shape, &u.shape});
    const cpu::SelectiveScanParams params = {
        batch, tokens, channels, states, u.data, delta.data, b.data, c.data, z.data, call.output<float>(0, wide), channels, channels, states, states, channels, channels,
        a_log.data, d.data, bias.data, lengths.data, past.data, call.output<float>(1, past.shape)};
    succeed(cpu::selective_scan(params, parallel(call), cpu::best_isa()));
  }
};

}  // namespace

const Definition& selective_scan() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, i64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  static const Definition definition = {
      "SelectiveScan",
      nullptr,
      {{"u", f32}, {"delta", f32}, {"A_log", f32}, {"B", f32}, {"C", f32}, {"D", f32}, {"delta_bias", f32}, {"z", f32}, {"past_state", f32}, {"lengths", i64}},
      {{"y", f32}, {"present_state", f32}},
      {},
      {0, 8},
      [](int** inputs, int** outputs) { return inplace_pairs({{8, 1}}, inputs, outputs); },
      [](const NodeInfo&) -> std::unique_ptr<Kernel> { return std::make_unique<SelectiveScan>(); },
  };
  return definition;
}

}  // namespace layerweave::ort
