#include "cpu/mamba_inner.h"

#include "host.h"

namespace layerweave::ort {

namespace {

class MambaInner : public Kernel {
 public:
  explicit MambaInner(const NodeInfo& node)
      : dt_rank_(node.integer("dt_rank")), states_(node.integer("d_state")), dt_eps_(node.real("dt_eps")), b_eps_(node.real("b_eps")), c_eps_(node.real("c_eps")) {
    if (dt_rank_ < 1 || states_ < 1) throw OpError("expected dt_rank and d_state of at least 1; got " + print({dt_rank_, states_}));
  }

  void compute(const Call& call) const override {
    const auto xz = call.input<float>(0), conv_weight = call.input<float>(1), past_conv = call.input<float>(13);
    expect(xz.shape.size() == 2 && conv_weight.shape.size() == 3 && past_conv.shape.size() == 3, "xz [M, 2I], conv_weight [I, 1, K] and past_conv [B, I, K - 1]",
           {&xz.shape, &conv_weight.shape, &past_conv.shape});
    const int64_t rows = xz.shape[0], batch = past_conv.shape[0], channels = conv_weight.shape[0], kernel = conv_weight.shape[2];
    expect(channels > 0 && xz.shape[1] == 2 * channels && conv_weight.shape[1] == 1 && past_conv.shape == Shape{batch, channels, kernel - 1},
           "xz [M, 2I], conv_weight [I, 1, K] and past_conv [B, I, K - 1]", {&xz.shape, &conv_weight.shape, &past_conv.shape});
    expect(batch > 0 ? rows % batch == 0 : rows == 0, "rows of xz a multiple of those of past_conv", {&xz.shape, &past_conv.shape});
    const int64_t projected = dt_rank_ + 2 * states_;
    const Shape ssm_shape = {batch, channels, states_};
    cpu::MambaInnerParams params = {};
    params.batch = batch;
    params.tokens = batch > 0 ? rows / batch : 0;
    params.channels = channels;
    params.states = states_;
    params.dt_rank = dt_rank_;
    params.kernel = kernel;
    params.xz = xz.data;
    params.conv_weight = conv_weight.data;
    params.conv_bias = optional(call, 2, "conv_bias", {channels});
    params.x_proj = tensor<int8_t>(call, 3, "x_proj", {projected, channels});
    params.x_proj_scales = tensor<float>(call, 4, "x_proj_scale", {projected});
    params.dt_norm = optional(call, 5, "dt_norm", {dt_rank_});
    params.b_norm = optional(call, 6, "b_norm", {states_});
    params.c_norm = optional(call, 7, "c_norm", {states_});
    params.dt_eps = dt_eps_;
    params.b_eps = b_eps_;
    params.c_eps = c_eps_;
    params.dt_proj = tensor<int8_t>(call, 8, "dt_proj", {channels, dt_rank_});
    params.dt_proj_scales = tensor<float>(call, 9, "dt_proj_scale", {channels});
    params.dt_bias = tensor<float>(call, 10, "dt_bias", {channels});
    params.a_log = tensor<float>(call, 11, "A_log", {channels, states_});
    params.d_skip = tensor<float>(call, 12, "D", {channels});
    params.lengths = tensor<int64_t>(call, 15, "lengths", {batch});
    params.conv_state_in = past_conv.data;
    params.ssm_state_in = tensor<float>(call, 14, "past_ssm", ssm_shape);
    params.y = call.output<float>(0, {rows, channels});
    params.conv_state_out = call.output<float>(1, past_conv.shape);
    params.ssm_state_out = call.output<float>(2, ssm_shape);
    const Scratch scratch(call, cpu::mamba_inner_scratch(params));
    params.scratch = scratch.data();
    succeed(cpu::mamba_inner(params, parallel(call), cpu::best_isa()));
  }

 private:
  template <class T>
  static const T* tensor(const Call& call, size_t index, const char* name, const Shape& shape) {
    const auto given = call.input<T>(index);
    if (given.shape != shape) throw OpError("expected " + std::string(name) + " " + print(shape) + "; got " + print(given.shape));
    return given.data;
  }
  static const float* optional(const Call& call, size_t index, const char* name, const Shape& shape) { return call.has(index) ? tensor<float>(call, index, name, shape) : nullptr; }

  const int64_t dt_rank_, states_;
  const float dt_eps_, b_eps_, c_eps_;
};

}  // namespace

const Definition& mamba_inner() {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, i8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  static const Definition definition = {
      "MambaInner",
      nullptr,
      {{"xz", f32},
       {"conv_weight", f32},
       {"conv_bias", f32, INPUT_OUTPUT_OPTIONAL},
       {"x_proj", i8},
       {"x_proj_scale", f32},
       {"dt_norm", f32, INPUT_OUTPUT_OPTIONAL},
       {"b_norm", f32, INPUT_OUTPUT_OPTIONAL},
       {"c_norm", f32, INPUT_OUTPUT_OPTIONAL},
       {"dt_proj", i8},
       {"dt_proj_scale", f32},
       {"dt_bias", f32},
       {"A_log", f32},
       {"D", f32},
       {"past_conv", f32},
       {"past_ssm", f32},
       {"lengths", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}},
      {{"y", f32}, {"present_conv", f32}, {"present_ssm", f32}},
      {{"dt_rank", "int"}, {"d_state", "int"}, {"dt_eps", "float"}, {"b_eps", "float"}, {"c_eps", "float"}},
      {{0, Extent{nullptr, {{12, 0}}}}, 13, 14},
      [](int** inputs, int** outputs) { return inplace_pairs({{13, 1}, {14, 2}}, inputs, outputs); },
      [](const NodeInfo& node) -> std::unique_ptr<Kernel> { return std::make_unique<MambaInner>(node); },
  };
  return definition;
}

}  // namespace layerweave::ort
