#include "residual_norm.cuh"

#include "device.h"

namespace layerweave::ort {

namespace {

class ResidualNorm : public CudaKernel {
 public:
  explicit ResidualNorm(const NodeInfo& node) : CudaKernel(node), epsilon_(node.real("epsilon")) {}

  void compute(const Call& call) const override {
    const auto x = call.input<void>(0);
    expect(x.shape.size() == 2 && x.shape[1] > 0 && x.shape[1] % 8 == 0, "x [M, D], D a multiple of 8", {&x.shape});
    ResidualNormParams params = {};
    params.tokens = x.shape[0];
    params.width = x.shape[1];
    params.epsilon = epsilon_;
    params.x = x.data;
    params.residual = tensor(call, 1, "residual", x.shape);
    params.scale = tensor(call, 2, "scale", {params.width});
    params.y = call.output<void>(0, x.shape);
    params.sum = call.output<void>(1, x.shape);
    if (params.tokens > 0) launched(residual_norm(params, dtype_, device_.stream(call)));
  }

 private:
  const float epsilon_;
};

}  // namespace

Definition residual_norm(ONNXTensorElementDataType type) {
  return {
      "ResidualNorm",
      kCuda,
      {{"x", type}, {"residual", type}, {"scale", type}},
      {{"y", type}, {"sum", type}},
      {{"epsilon", "float"}},
      {0, 0},
      nullptr,
      [](const NodeInfo& node) -> std::unique_ptr<Kernel> { return std::make_unique<ResidualNorm>(node); },
  };
}

}  // namespace layerweave::ort
