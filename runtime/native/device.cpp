#include "device.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace layerweave {

namespace {

constexpr size_t kAlignment = 64;

OrtOwned<OrtMemoryInfo> host_memory_info(const OrtLibrary& ort) {
  OrtMemoryInfo* info = nullptr;
  ort.check(ort.api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &info));
  return {info, ort.api().ReleaseMemoryInfo};
}

}  // namespace

HostDevice::HostDevice(const OrtLibrary& ort) : info_(host_memory_info(ort)) {}

void* HostDevice::allocate(size_t bytes) {
  // calloc, and not memset: pages of a large buffer that no token has reached yet take no memory. What it returned is kept
  // before the aligned address.
  void* allocation = std::calloc(1, bytes + kAlignment + sizeof(void*));
  if (!allocation) throw std::runtime_error("no memory for a state buffer of " + std::to_string(bytes) + " bytes");
  const auto address = reinterpret_cast<uintptr_t>(allocation) + sizeof(void*);
  void* aligned = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  static_cast<void**>(aligned)[-1] = allocation;
  return aligned;
}

void HostDevice::release(void* memory) noexcept { std::free(static_cast<void**>(memory)[-1]); }

void HostDevice::copy(Stretches<std::byte> to, Stretches<const std::byte> from, size_t bytes, size_t count) {
  for (size_t i = 0; i < count; i++) std::memcpy(to.first + i * to.distance, from.first + i * from.distance, bytes);
}

OrtOwned<OrtValue> wrap(const OrtLibrary& ort, const Device& device, void* data, size_t bytes, const std::vector<int64_t>& shape,
                        ONNXTensorElementDataType type) {
  OrtValue* value = nullptr;
  ort.check(ort.api().CreateTensorWithDataAsOrtValue(device.memory_info(), data, bytes, shape.data(), shape.size(), type, &value));
  return {value, ort.api().ReleaseValue};
}

}  // namespace layerweave
