#pragma once

#include <cuda_runtime_api.h>

#include "../op.h"
#include "dtype.h"
#include "packed_weights.h"

namespace layerweave::ort {

/// Device memory from ONNX Runtime's arena, given back at the end. Work that was enqueued on the stream may still use it then:
/// whoever gets it next enqueues behind.
class DeviceMemory {
 public:
  DeviceMemory(const OrtApi& api, OrtAllocator* allocator, void* data) : api_(api), allocator_(allocator), data_(data) {}
  DeviceMemory(DeviceMemory&& other) noexcept : api_(other.api_), allocator_(other.allocator_), data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory();
  void* data() const { return data_; }

 private:
  const OrtApi& api_;
  OrtAllocator* allocator_;
  void* data_;
};

/// What a node's kernel has of its device.
class Device {
 public:
  explicit Device(const NodeInfo& node);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { api_.ReleaseAllocator(allocator_); }

  /// The stream that ONNX Runtime runs the call on; the one being captured while there is a capture.
  cudaStream_t stream(const Call& call) const;
  /// Memory for the call alone. Null for 0 bytes.
  DeviceMemory scratch(const Call& call, int64_t bytes) const;

 private:
  const OrtApi& api_;
  OrtAllocator* allocator_ = nullptr;
};

/// Counters that a kernel finds at zero and leaves at zero. A captured graph may hold those of an earlier size, so none are
/// given back before the end. One call at a time.
class Counters {
 public:
  uint32_t* at_least(int64_t count, const Device& device, const Call& call);

 private:
  struct Free {
    void operator()(uint32_t* counters) const { static_cast<void>(cudaFree(counters)); }
  };
  // Not from the arena, whose free piece they would cut in two. The last is the largest.
  std::vector<std::unique_ptr<uint32_t, Free>> memory_;
  int64_t count_ = 0;
};

/// A kernel of an op whose first input has the activations' type, bfloat16 or float16.
class CudaKernel : public Kernel {
 protected:
  explicit CudaKernel(const NodeInfo& node);
  uint32_t* arrivals(int64_t count, const Call& call) const { return arrivals_.at_least(count, device_, call); }

  const Device device_;
  const DType dtype_;

 private:
  mutable Counters arrivals_;
};

/// How packed weights are stored: int8, or as the first input's type.
PackedType packed_type(const NodeInfo& node, size_t weight);

/// Extents padded to whole panels or chunks.
constexpr int64_t padded(int64_t extent) { return kPanelRows * packed_panels(extent); }

/// A tensor's elements. Throws unless it has that shape.
const void* tensor(const Call& call, size_t index, const char* name, const Shape& shape);

/// The same, or null where the input is absent.
const void* optional_tensor(const Call& call, size_t index, const char* name, const Shape& shape);

/// The scales of packed weights, or null where those have none.
const float* scales(const Call& call, size_t index, const char* name, PackedType weights, const Shape& shape);

/// Throws unless a kernel was launched.
void launched(cudaError_t status);

/// A definition for each type of the activations.
struct ForBothTypes {
  const Definition bfloat16, float16;
  explicit ForBothTypes(Definition (*of)(ONNXTensorElementDataType)) : bfloat16(of(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)), float16(of(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)) {}
};

inline constexpr const char* kCuda = "CUDAExecutionProvider";
/// int8 or the activations' type, which each kernel checks.
inline constexpr ONNXTensorElementDataType kPacked = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

Definition attention_inner(ONNXTensorElementDataType type);
Definition packed_linear(ONNXTensorElementDataType type);
Definition packed_mamba_inner(ONNXTensorElementDataType type);
Definition packed_moe(ONNXTensorElementDataType type);
Definition residual_norm(ONNXTensorElementDataType type);
Definition select_tokens(ONNXTensorElementDataType type);

}  // namespace layerweave::ort
