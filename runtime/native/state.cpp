#include "state.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <utility>

namespace layerweave {

namespace {

constexpr size_t kAlignment = 64;

/** @throws std::runtime_error for a size that can't be addressed: extents come from outside. */
size_t float_bytes(const std::vector<int64_t>& shape) {
  constexpr auto kMost = static_cast<size_t>(std::numeric_limits<int64_t>::max());
  size_t bytes = sizeof(float);
  for (const int64_t extent : shape) {
    if (extent < 0 || (extent > 0 && bytes > kMost / static_cast<size_t>(extent))) throw std::runtime_error("a state buffer would be too large");
    bytes *= static_cast<size_t>(extent);
  }
  return bytes;
}

/** calloc, and not memset: pages of a large buffer that no token has reached yet take no memory. */
void* zeroed(size_t bytes) {
  void* allocation = std::calloc(1, bytes + kAlignment);
  if (!allocation) throw std::runtime_error("no memory for a state buffer of " + std::to_string(bytes) + " bytes");
  return allocation;
}

float* aligned(void* allocation) {
  const auto address = reinterpret_cast<uintptr_t>(allocation);
  return reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace

std::vector<int64_t> SlotSpec::extents(int64_t batch, int64_t capacity) const {
  std::vector<int64_t> extents = shape;
  for (int64_t& extent : extents) {
    if (extent == kBatch) extent = batch;
    if (extent == kCapacity) extent = capacity;
  }
  return extents;
}

bool SlotSpec::grows() const { return std::find(shape.begin(), shape.end(), kCapacity) != shape.end(); }

OrtOwned<OrtValue> wrap(const OrtLibrary& ort, void* data, size_t bytes, const std::vector<int64_t>& shape,
                        ONNXTensorElementDataType type) {
  const OrtApi& api = ort.api();
  OrtMemoryInfo* info = nullptr;
  ort.check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &info));
  const OrtOwned<OrtMemoryInfo> owned_info(info, api.ReleaseMemoryInfo);
  OrtValue* value = nullptr;
  ort.check(api.CreateTensorWithDataAsOrtValue(info, data, bytes, shape.data(), shape.size(), type, &value));
  return {value, api.ReleaseValue};
}

Tensor::Tensor(const OrtLibrary& ort, std::vector<int64_t> shape, Tally& tally)
    : shape_(std::move(shape)),
      bytes_(float_bytes(shape_)),
      tally_(tally),
      allocation_(zeroed(bytes_), std::free),
      data_(aligned(allocation_.get())),
      value_(wrap(ort, data_, bytes_, shape_, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)) {
  tally_.now += bytes_;
  tally_.peak = std::max(tally_.peak, tally_.now);
}

int64_t Tensor::capacity(const SlotSpec& spec) const {
  const auto axis = std::find(spec.shape.begin(), spec.shape.end(), kCapacity) - spec.shape.begin();
  return spec.grows() ? shape_[static_cast<size_t>(axis)] : 1;
}

Tensor::~Tensor() { tally_.now -= bytes_; }

void copy_row(const SlotSpec& spec, Rows<const float> from, int64_t from_row, Rows<float> to, int64_t to_row, int64_t positions) {
  // A row is `groups` stretches of capacity x inner numbers; what doesn't grow is one stretch of one position.
  int64_t groups = 1;
  int64_t inner = 1;
  bool behind_capacity = !spec.grows();
  if (behind_capacity) from.capacity = to.capacity = positions = 1;
  for (size_t axis = 1; axis < spec.shape.size(); axis++) {
    if (spec.shape[axis] == kCapacity) behind_capacity = true;
    else (behind_capacity ? inner : groups) *= spec.shape[axis];
  }
  for (int64_t g = 0; g < groups; g++) {
    const float* source = from.data + (from_row * groups + g) * from.capacity * inner;
    std::copy(source, source + positions * inner, to.data + (to_row * groups + g) * to.capacity * inner);
  }
}

}  // namespace layerweave
