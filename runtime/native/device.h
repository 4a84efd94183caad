#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "ort_library.h"

namespace layerweave {

/** Equally long stretches of bytes at equal distances: the rows of a tensor, or a part of each. */
template <typename Byte>
struct Stretches {
  Byte* first;
  size_t distance;
};

/** Where a session's state lies, and what moves it. What it is asked to do is done in order, and done after `wait`. */
class Device {
 public:
  virtual ~Device() = default;

  /** How ONNX Runtime is told where a tensor lies. */
  virtual const OrtMemoryInfo* memory_info() const = 0;
  /** Zeroed. @throws std::runtime_error when there is no memory */
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  /** Copies `count` stretches of `bytes` each; either end may lie in host memory. */
  virtual void copy(Stretches<std::byte> to, Stretches<const std::byte> from, size_t bytes, size_t count) = 0;
  virtual void wait() = 0;

  void copy(void* to, const void* from, size_t bytes) { copy({static_cast<std::byte*>(to), bytes}, {static_cast<const std::byte*>(from), bytes}, bytes, 1); }
};

class HostDevice : public Device {
 public:
  explicit HostDevice(const OrtLibrary& ort);

  using Device::copy;
  const OrtMemoryInfo* memory_info() const override { return info_.get(); }
  void* allocate(size_t bytes) override;
  void release(void* memory) noexcept override;
  void copy(Stretches<std::byte> to, Stretches<const std::byte> from, size_t bytes, size_t count) override;
  void wait() override {}

 private:
  OrtOwned<OrtMemoryInfo> info_;
};

/** Memory of a device, released with this. */
class DeviceMemory {
 public:
  DeviceMemory(Device& device, size_t bytes) : device_(device), data_(device.allocate(bytes)) {}
  ~DeviceMemory() { device_.release(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  Device& device_;
  void* data_;
};

/** A tensor over memory that the caller keeps for as long as the result lives. */
OrtOwned<OrtValue> wrap(const OrtLibrary& ort, const Device& device, void* data, size_t bytes, const std::vector<int64_t>& shape,
                        ONNXTensorElementDataType type);

}  // namespace layerweave
