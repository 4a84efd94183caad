#include "device.h"
#include "linear_packed.cuh"

namespace layerweave::ort {

namespace {

class PackedLinear : public CudaKernel {
 public:
  explicit PackedLinear(const NodeInfo& node) : CudaKernel(node), rows_(node.integer("rows")) {}

  void compute(const Call& call) const override {
    const auto x = call.input<void>(0);
    expect(x.shape.size() == 2 && x.shape[1] > 0 && x.shape[1] % 8 == 0, "x [M, K], K a multiple of 8", {&x.shape});
    LinearPackedParams params = {};
    params.tokens = x.shape[0];
    params.rows = rows_;
    params.columns = x.shape[1];
    params.weights = PackedType::kInt8;
    params.weight = tensor(call, 1, "weight", {padded(rows_), padded(params.columns)});
    params.scale = scales(call, 2, "scale", params.weights, {padded(rows_)});
    params.bias = optional_tensor(call, 3, "bias", {rows_});
    params.x = x.data;
    params.y = call.output<void>(0, {params.tokens, rows_});
    params.x_row_stride = params.columns;
    params.y_row_stride = rows_;
    if (params.tokens == 0) return;
    const DeviceMemory workspace = device_.scratch(call, linear_packed_workspace(params));
    params.workspace = workspace.data();
    params.arrivals = arrivals(linear_packed_arrivals(params), call);
    launched(linear_packed(params, dtype_, device_.stream(call)));
  }

 private:
  const int64_t rows_;
};

}  // namespace

Definition packed_linear(ONNXTensorElementDataType type) {
  return {
      "PackedLinear",
      kCuda,
      {{"x", type}, {"weight", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8}, {"scale", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, {"bias", type, INPUT_OUTPUT_OPTIONAL}},
      {{"y", type}},
      {{"rows", "int"}},
      {{0, Extent{"rows", {}}}},
      nullptr,
      [](const NodeInfo& node) -> std::unique_ptr<Kernel> { return std::make_unique<PackedLinear>(node); },
  };
}

}  // namespace layerweave::ort
