#include "attention.cuh"
#include "device.h"

namespace layerweave::ort {

namespace {

class AttentionInner : public CudaKernel {
 public:
  explicit AttentionInner(const NodeInfo& node)
      : CudaKernel(node), heads_(node.integer("n_heads")), kv_heads_(node.integer("n_kv_heads")), window_(node.integer("window")), rope_scale_(node.real("rope_scale")) {
    if (kv_heads_ < 1 || heads_ < 1 || heads_ % kv_heads_ || window_ < 0)
      throw OpError("expected n_heads a multiple of n_kv_heads and window at least 0; got " + print({heads_, kv_heads_, window_}));
  }

  void compute(const Call& call) const override {
    const auto qkv = call.input<void>(0), past_key = call.input<void>(1);
    expect(qkv.shape.size() == 2 && past_key.shape.size() == 4, "qkv [M, (H + 2G)·P] and past_key [B, G, S, P]", {&qkv.shape, &past_key.shape});
    const int64_t rows = qkv.shape[0], batch = past_key.shape[0], capacity = past_key.shape[2], head_dim = past_key.shape[3];
    expect(past_key.shape[1] == kv_heads_ && qkv.shape[1] == (heads_ + 2 * kv_heads_) * head_dim, "qkv [M, (H + 2G)·P] and past_key [B, G, S, P]", {&qkv.shape, &past_key.shape});
    expect(batch > 0 && rows > 0 && rows % batch == 0 && rows / batch <= capacity, "rows of qkv a multiple of those of past_key, up to S of each", {&qkv.shape, &past_key.shape});

    AttentionParams params = {};
    params.batch = batch;
    params.tokens = rows / batch;
    params.heads = heads_;
    params.kv_heads = kv_heads_;
    params.head_dim = head_dim;
    params.capacity = capacity;
    params.window = window_;
    params.rope_scale = rope_scale_;
    params.qkv = qkv.data;
    params.qkv_row_stride = qkv.shape[1];
    params.key_in = past_key.data;
    params.value_in = tensor(call, 2, "past_value", past_key.shape);
    params.past_lengths = static_cast<const int64_t*>(tensor(call, 3, "past_lengths", {batch}));
    params.inverse_frequencies = static_cast<const float*>(optional_tensor(call, 4, "inverse_frequencies", {head_dim / 2}));
    params.y = call.output<void>(0, {rows, heads_ * head_dim});
    params.key_out = call.output<void>(1, past_key.shape);
    params.value_out = call.output<void>(2, past_key.shape);
    const DeviceMemory workspace = device_.scratch(call, attention_workspace(params));
    params.workspace = workspace.data();
    params.arrivals = arrivals(attention_arrivals(params), call);
    launched(attention(params, dtype_, device_.stream(call)));
  }

 private:
  const int64_t heads_, kv_heads_, window_;
  const float rope_scale_;
};

}  // namespace

Definition attention_inner(ONNXTensorElementDataType type) {
  return {
      "AttentionInner",
      kCuda,
      {{"qkv", type},
       {"past_key", type},
       {"past_value", type},
       {"past_lengths", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
       {"inverse_frequencies", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, INPUT_OUTPUT_OPTIONAL}},
      {{"y", type}, {"present_key", type}, {"present_value", type}},
      {{"n_heads", "int"}, {"n_kv_heads", "int"}, {"window", "int"}, {"rope_scale", "float"}},
      {{0, Extent{"n_heads", {{1, 3}}}}, 1, 2},
      [](int** inputs, int** outputs) { return inplace_pairs({{1, 1}, {2, 2}}, inputs, outputs); },
      [](const NodeInfo& node) -> std::unique_ptr<Kernel> { return std::make_unique<AttentionInner>(node); },
  };
}

}  // namespace layerweave::ort
