#pragma once

#include "cuda_library.h"
#include "device.h"

namespace layerweave {

/** One card, seen through one stream on which everything of a session happens in order. Used by one thread. */
class CudaDevice : public Device {
 public:
  /** @throws std::runtime_error in CUDA's words */
  CudaDevice(const OrtLibrary& ort, const CudaLibrary& cuda, int ordinal);
  ~CudaDevice() override;

  using Device::copy;
  const OrtMemoryInfo* memory_info() const override { return info_.get(); }
  void* allocate(size_t bytes) override;
  /** As `allocate`, but what is there stays there. */
  void* allocate_uninitialised(size_t bytes);
  void release(void* memory) noexcept override;
  void copy(Stretches<std::byte> to, Stretches<const std::byte> from, size_t bytes, size_t count) override;
  void wait() override;

  const CudaLibrary& cuda() const { return cuda_; }
  int ordinal() const { return ordinal_; }
  CudaLibrary::Stream stream() const { return stream_; }

 private:
  const CudaLibrary& cuda_;
  const int ordinal_;
  OrtOwned<OrtMemoryInfo> info_;
  CudaLibrary::Stream stream_ = nullptr;
};

}  // namespace layerweave
