#include "device.h"
#include "moe.cuh"

namespace layerweave::ort {

namespace {

/// Parts of one piece of memory, each aligned to 256 bytes.
class Layout {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

class PackedMoE : public CudaKernel {
 public:
  explicit PackedMoE(const NodeInfo& node)
      : CudaKernel(node),
        experts_(node.integer("n_experts")),
        top_k_(node.integer("top_k")),
        d_ff_(node.integer("d_ff")),
        order_(order_of(node)),
        renormalise_(node.integer("renormalise") != 0),
        weights_(packed_type(node, 2)) {
    if (packed_type(node, 4) != weights_) throw OpError("expected gate_up and down of one type");
    if (top_k_ < 1 || top_k_ > kMoeMaxTopK || top_k_ > experts_ || experts_ > kMoeMaxExperts)
      throw OpError("expected top_k from 1 to " + std::to_string(kMoeMaxTopK) + " of n_experts up to " + std::to_string(kMoeMaxExperts) + "; got " + print({top_k_, experts_}));
  }

  void compute(const Call& call) const override {
    const auto x = call.input<void>(0);
    expect(x.shape.size() == 2 && x.shape[1] > 0 && x.shape[1] % 8 == 0, "x [M, D], D a multiple of 8", {&x.shape});
    const bool routed = call.has(1);
    if (!routed && experts_ != 1) throw OpError("expected a router for " + std::to_string(experts_) + " experts");
    const int64_t d_model = x.shape[1], pair_rows = packed_pair_rows(d_ff_);
    MoeParams params = {};
    params.tokens = x.shape[0];
    params.d_model = d_model;
    params.d_ff = d_ff_;
    params.experts = experts_;
    params.top_k = top_k_;
    params.weights = weights_;
    params.gate_up = tensor(call, 2, "gate_up", {experts_, pair_rows, padded(d_model)});
    params.gate_up_scale = scales(call, 3, "gate_up_scale", weights_, {experts_, pair_rows});
    params.down = tensor(call, 4, "down", {experts_, padded(d_model), padded(d_ff_)});
    params.down_scale = scales(call, 5, "down_scale", weights_, {experts_, padded(d_model)});
    params.x = x.data;
    params.y = call.output<void>(0, x.shape);
    if (params.tokens == 0) return;

    const bool few = params.tokens <= kMoeMaxDecodeTokens;
    const int64_t choices = params.tokens * top_k_;
    Layout layout;
    const int64_t workspace = layout.add(few ? moe_decode_workspace(params) : moe_prefill_workspace(params));
    const int64_t logits = layout.add(params.tokens * experts_ * 4), chosen = layout.add(choices * 4), mixing = layout.add(choices * 4);
    const int64_t offsets = layout.add((experts_ + 1) * 4), permutation = layout.add(choices * 4), positions = layout.add(choices * 4);
    const DeviceMemory scratch = device_.scratch(call, layout.bytes());
    const auto at = [&](int64_t part) { return static_cast<char*>(scratch.data()) + part; };
    const auto indices = [&](int64_t part) { return reinterpret_cast<int32_t*>(at(part)); };
    params.workspace = at(workspace);
    const int64_t expert_arrivals = moe_arrivals(params);
    params.arrivals = arrivals(expert_arrivals + 1, call);
    const cudaStream_t stream = device_.stream(call);
    if (routed) {
      params.routing = {indices(chosen), reinterpret_cast<float*>(at(mixing)), indices(offsets), indices(permutation), indices(positions)};
      MoeRouteParams route = {};
      route.tokens = params.tokens;
      route.d_model = d_model;
      route.experts = experts_;
      route.top_k = top_k_;
      route.order = order_;
      route.renormalise = renormalise_;
      route.x = x.data;
      route.router = static_cast<const float*>(tensor(call, 1, "router", {experts_, d_model}));
      route.logits = reinterpret_cast<float*>(at(logits));
      route.routing = params.routing;
      route.arrivals = params.arrivals + expert_arrivals;
      launched(moe_route(route, dtype_, stream));
    }
    launched(few ? moe_decode(params, dtype_, stream) : moe_prefill(params, dtype_, stream));
  }

 private:
  static RouterOrder order_of(const NodeInfo& node) {
    const std::string router = node.text("router");
    if (router == "softmax-then-top-k") return RouterOrder::kSoftmaxThenTopK;
    if (router == "top-k-then-softmax") return RouterOrder::kTopKThenSoftmax;
    throw OpError("router must be softmax-then-top-k or top-k-then-softmax, not " + router);
  }

  const int64_t experts_, top_k_, d_ff_;
  const RouterOrder order_;
  const bool renormalise_;
  const PackedType weights_;
};

}  // namespace

Definition packed_moe(ONNXTensorElementDataType type) {
  constexpr auto f32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  return {
      "PackedMoE",
      kCuda,
      {{"x", type},
       {"router", f32, INPUT_OUTPUT_OPTIONAL},
       {"gate_up", kPacked},
       {"gate_up_scale", f32, INPUT_OUTPUT_OPTIONAL},
       {"down", kPacked},
       {"down_scale", f32, INPUT_OUTPUT_OPTIONAL}},
      {{"y", type}},
      {{"n_experts", "int"}, {"top_k", "int"}, {"router", "string"}, {"renormalise", "int"}, {"d_ff", "int"}},
      {0},
      nullptr,
      [](const NodeInfo& node) -> std::unique_ptr<Kernel> { return std::make_unique<PackedMoE>(node); },
  };
}

}  // namespace layerweave::ort
