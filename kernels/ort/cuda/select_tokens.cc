#include "select_tokens.cuh"

#include "device.h"

namespace layerweave::ort {

namespace {

class SelectTokens : public CudaKernel {
 public:
  explicit SelectTokens(const NodeInfo& node) : CudaKernel(node) {}

  void compute(const Call& call) const override {
    const auto x = call.input<void>(0);
    const auto indices = call.input<int64_t>(1);
    expect(x.shape.size() == 2 && indices.shape.size() == 2, "x [M, D] and indices [B, L]", {&x.shape, &indices.shape});
    const int64_t rows = x.shape[0], batch = indices.shape[0], selected = indices.shape[1];
    expect(batch > 0 && rows > 0 && rows % batch == 0, "rows of x a multiple of those of indices", {&x.shape, &indices.shape});
    SelectTokensParams params = {};
    params.batch = batch;
    params.tokens = rows / batch;
    params.selected = selected;
    params.row_bytes = 2 * x.shape[1];
    params.x = x.data;
    params.indices = indices.data;
    params.y = call.output<void>(0, {batch * selected, x.shape[1]});
    if (selected > 0) launched(select_tokens(params, device_.stream(call)));
  }
};

}  // namespace

Definition select_tokens(ONNXTensorElementDataType type) {
  return {
      "SelectTokens",
      kCuda,
      {{"x", type}, {"indices", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}},
      {{"y", type}},
      {},
      {},
      nullptr,
      [](const NodeInfo& node) -> std::unique_ptr<Kernel> { return std::make_unique<SelectTokens>(node); },
  };
}

}  // namespace layerweave::ort
