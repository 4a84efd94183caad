#include "device.h"

#include <algorithm>

namespace layerweave::ort {

namespace {

DType dtype_of(const NodeInfo& node) {
  switch (node.input_type(0)) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return DType::kBFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return DType::kFloat16;
    default:
      throw OpError("expected activations of bfloat16 or float16");
  }
}

void succeed(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw OpError(std::string(what) + " failed: " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")", ORT_EP_FAIL);
}

}  // namespace

DeviceMemory::~DeviceMemory() {
  if (!data_) return;
  if (OrtStatus* status = api_.AllocatorFree(allocator_, data_)) api_.ReleaseStatus(status);
}

Device::Device(const NodeInfo& node) : api_(node.api) { check(api_, api_.KernelInfoGetAllocator(node.info, OrtMemTypeDefault, &allocator_)); }

cudaStream_t Device::stream(const Call& call) const {
  void* stream = nullptr;
  check(api_, api_.KernelContext_GetGPUComputeStream(call.context, &stream));
  return static_cast<cudaStream_t>(stream);
}

DeviceMemory Device::scratch(const Call& call, int64_t bytes) const {
  if (bytes <= 0) return DeviceMemory(api_, allocator_, nullptr);
  OrtSyncStream* stream = nullptr;
  check(api_, api_.KernelContext_GetSyncStream(call.context, &stream));
  // Not KernelContext_GetScratchBuffer, which does the same but ends the process where there is no memory.
  void* const data = allocator_->AllocOnStream(allocator_, static_cast<size_t>(bytes), stream);
  if (data == nullptr) throw OpError("no memory for " + std::to_string(bytes) + " bytes on the card", ORT_FAIL);
  return DeviceMemory(api_, allocator_, data);
}

uint32_t* Counters::at_least(int64_t count, const Device& device, const Call& call) {
  if (count > count_) {
    const int64_t grown = std::max(count, 2 * count_);
    const size_t bytes = static_cast<size_t>(grown) * sizeof(uint32_t);
    void* counters = nullptr;
    succeed(cudaMalloc(&counters, bytes), "taking memory for counters");
    memory_.emplace_back(static_cast<uint32_t*>(counters));
    count_ = grown;
    succeed(cudaMemsetAsync(counters, 0, bytes, device.stream(call)), "setting counters to zero");
  }
  return memory_.empty() ? nullptr : memory_.back().get();
}

CudaKernel::CudaKernel(const NodeInfo& node) : device_(node), dtype_(dtype_of(node)) {}

PackedType packed_type(const NodeInfo& node, size_t weight) {
  const ONNXTensorElementDataType type = node.input_type(weight);
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) return PackedType::kInt8;
  if (type == node.input_type(0)) return PackedType::k16Bit;
  throw OpError("expected packed weights of int8 or of the activations' type in input " + std::to_string(weight));
}

const void* tensor(const Call& call, size_t index, const char* name, const Shape& shape) {
  const auto given = call.input<void>(index);
  if (given.shape != shape) throw OpError(std::string("expected ") + name + " of shape " + print(shape) + "; got " + print(given.shape));
  return given.data;
}

const void* optional_tensor(const Call& call, size_t index, const char* name, const Shape& shape) { return call.has(index) ? tensor(call, index, name, shape) : nullptr; }

const float* scales(const Call& call, size_t index, const char* name, PackedType weights, const Shape& shape) {
  if (call.has(index) != (weights == PackedType::kInt8)) throw OpError(std::string("expected ") + name + " with int8 weights, and only with them");
  return static_cast<const float*>(optional_tensor(call, index, name, shape));
}

void launched(cudaError_t status) { succeed(status, "the launch"); }

const std::vector<const Definition*>& definitions() {
  static const ForBothTypes ops[] = {ForBothTypes(attention_inner), ForBothTypes(packed_linear), ForBothTypes(packed_mamba_inner), ForBothTypes(packed_moe), ForBothTypes(residual_norm), ForBothTypes(select_tokens)};
  static const std::vector<const Definition*> all = [] {
    std::vector<const Definition*> list;
    for (const ForBothTypes& op : ops) list.insert(list.end(), {&op.bfloat16, &op.float16});
    return list;
  }();
  return all;
}

}  // namespace layerweave::ort
