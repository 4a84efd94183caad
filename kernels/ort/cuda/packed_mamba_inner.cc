#include "device.h"
#include "mamba_inner.cuh"

namespace layerweave::ort {

namespace {

class PackedMambaInner : public CudaKernel {
 public:
  explicit PackedMambaInner(const NodeInfo& node)
      : CudaKernel(node),
        dt_rank_(node.integer("dt_rank")),
        states_(node.integer("d_state")),
        dt_eps_(node.real("dt_eps")),
        b_eps_(node.real("b_eps")),
        c_eps_(node.real("c_eps")),
        weights_(packed_type(node, 3)) {
    if (packed_type(node, 8) != weights_) throw OpError("expected x_proj and dt_proj of one type");
  }

  void compute(const Call& call) const override {
    const auto xz = call.input<void>(0), conv_weight = call.input<void>(1), past_conv = call.input<void>(13);
    expect(xz.shape.size() == 2 && conv_weight.shape.size() == 3 && past_conv.shape.size() == 3, "xz [M, 2I], conv_weight [I, 1, K] and past_conv [B, I, K - 1]",
           {&xz.shape, &conv_weight.shape, &past_conv.shape});
    const int64_t rows = xz.shape[0], batch = past_conv.shape[0], channels = conv_weight.shape[0], kernel = conv_weight.shape[2];
    expect(xz.shape[1] == 2 * channels && channels % 8 == 0 && conv_weight.shape[1] == 1 && past_conv.shape == Shape{batch, channels, kernel - 1},
           "xz [M, 2I], conv_weight [I, 1, K] and past_conv [B, I, K - 1], I a multiple of 8", {&xz.shape, &conv_weight.shape, &past_conv.shape});
    expect(batch > 0 && rows > 0 && rows % batch == 0, "rows of xz a multiple of those of past_conv", {&xz.shape, &past_conv.shape});
    const Shape ssm_shape = {batch, channels, states_};
    const int64_t projected = padded(dt_rank_ + 2 * states_);
    const bool normed = call.has(5);
    if (call.has(6) != normed || call.has(7) != normed) throw OpError("expected dt_norm, b_norm and c_norm, or none of them");

    MambaInnerParams params = {};
    params.batch = batch;
    params.tokens = rows / batch;
    params.channels = channels;
    params.states = states_;
    params.dt_rank = dt_rank_;
    params.kernel = kernel;
    params.weights = weights_;
    params.xz = xz.data;
    params.conv_weight = conv_weight.data;
    params.conv_bias = optional_tensor(call, 2, "conv_bias", {channels});
    params.x_proj = tensor(call, 3, "x_proj", {projected, padded(channels)});
    params.x_proj_scale = scales(call, 4, "x_proj_scale", weights_, {projected});
    params.dt_norm = optional_tensor(call, 5, "dt_norm", {dt_rank_});
    params.b_norm = optional_tensor(call, 6, "b_norm", {states_});
    params.c_norm = optional_tensor(call, 7, "c_norm", {states_});
    params.dt_eps = dt_eps_;
    params.b_eps = b_eps_;
    params.c_eps = c_eps_;
    params.dt_proj = tensor(call, 8, "dt_proj", {padded(channels), padded(dt_rank_)});
    params.dt_proj_scale = scales(call, 9, "dt_proj_scale", weights_, {padded(channels)});
    params.dt_bias = static_cast<const float*>(tensor(call, 10, "dt_bias", {channels}));
    params.a_log = static_cast<const float*>(tensor(call, 11, "A_log", {channels, states_}));
    params.d_skip = static_cast<const float*>(tensor(call, 12, "D", {channels}));
    params.conv_state_in = past_conv.data;
    params.ssm_state_in = static_cast<const float*>(tensor(call, 14, "past_ssm", ssm_shape));
    params.lengths = static_cast<const int64_t*>(tensor(call, 15, "lengths", {batch}));
    params.y = call.output<void>(0, {rows, channels});
    params.conv_state_out = call.output<void>(1, past_conv.shape);
    params.ssm_state_out = call.output<float>(2, ssm_shape);
    const DeviceMemory workspace = device_.scratch(call, mamba_inner_workspace(params));
    params.workspace = workspace.data();
    params.arrivals = arrivals(mamba_inner_arrivals(params), call);
    launched(mamba_inner(params, dtype_, device_.stream(call)));
  }

 private:
  const int64_t dt_rank_, states_;
  const float dt_eps_, b_eps_, c_eps_;
  const PackedType weights_;
};

}  // namespace

Definition packed_mamba_inner(ONNXTensorElementDataType type) {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  return {
      "PackedMambaInner",
      kCuda,
      {{"xz", type},
       {"conv_weight", type},
       {"conv_bias", type, INPUT_OUTPUT_OPTIONAL},
       {"x_proj", kPacked},
       {"x_proj_scale", f32, INPUT_OUTPUT_OPTIONAL},
       {"dt_norm", type, INPUT_OUTPUT_OPTIONAL},
       {"b_norm", type, INPUT_OUTPUT_OPTIONAL},
       {"c_norm", type, INPUT_OUTPUT_OPTIONAL},
       {"dt_proj", kPacked},
       {"dt_proj_scale", f32, INPUT_OUTPUT_OPTIONAL},
       {"dt_bias", f32},
       {"A_log", f32},
       {"D", f32},
       {"past_conv", type},
       {"past_ssm", f32},
       {"lengths", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}},
      {{"y", type}, {"present_conv", type}, {"present_ssm", f32}},
      {{"dt_rank", "int"}, {"d_state", "int"}, {"dt_eps", "float"}, {"b_eps", "float"}, {"c_eps", "float"}},
      {{0, Extent{nullptr, {{12, 0}}}}, 13, 14},
      [](int** inputs, int** outputs) { return inplace_pairs({{13, 1}, {14, 2}}, inputs, outputs); },
      [](const NodeInfo& node) -> std::unique_ptr<Kernel> { return std::make_unique<PackedMambaInner>(node); },
  };
}

}  // namespace layerweave::ort
