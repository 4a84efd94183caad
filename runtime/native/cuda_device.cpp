#include "cuda_device.h"

#include <algorithm>
#include <mutex>
#include <string>

namespace layerweave {

namespace {

OrtOwned<OrtMemoryInfo> cuda_memory_info(const OrtLibrary& ort, int ordinal) {
  OrtMemoryInfo* info = nullptr;
  ort.check(ort.api().CreateMemoryInfo("Cuda", OrtDeviceAllocator, ordinal, OrtMemTypeDefault, &info));
  return {info, ort.api().ReleaseMemoryInfo};
}

using Sharing = std::shared_lock<std::shared_mutex>;

}  // namespace

CudaDevice::CudaDevice(const OrtLibrary& ort, const CudaLibrary& cuda, int ordinal) : cuda_(cuda), ordinal_(ordinal), info_(cuda_memory_info(ort, ordinal)) {
  const Sharing lock(cuda_.calls());
  cuda_.check(cuda_.set_device(ordinal), "choosing card " + std::to_string(ordinal));
  cuda_.check(cuda_.stream_create(&stream_, CudaLibrary::kNonBlocking), "making a stream");
}

// Here and in `release` an error can only be an older one, of a context that is broken: whoever waits next is told.
CudaDevice::~CudaDevice() {
  const Sharing lock(cuda_.calls());
  cuda_.stream_destroy(stream_);
}

void* CudaDevice::allocate_uninitialised(size_t bytes) {
  const Sharing lock(cuda_.calls());
  void* memory = nullptr;
  // One byte at least, so that there is an address.
  cuda_.check(cuda_.malloc(&memory, std::max<size_t>(bytes, 1)), "a buffer of " + std::to_string(bytes) + " bytes");
  return memory;
}

void* CudaDevice::allocate(size_t bytes) {
  void* memory = allocate_uninitialised(bytes);
  const Sharing lock(cuda_.calls());
  const CudaLibrary::Status status = cuda_.memset_async(memory, 0, bytes, stream_);
  if (status != 0) cuda_.free(memory);
  cuda_.check(status, "zeroing a buffer");
  return memory;
}

void CudaDevice::release(void* memory) noexcept {
  const Sharing lock(cuda_.calls());
  cuda_.free(memory);
}

void CudaDevice::copy(Stretches<std::byte> to, Stretches<const std::byte> from, size_t bytes, size_t count) {
  if (bytes == 0 || count == 0) return;
  const Sharing lock(cuda_.calls());
  const bool dense = count == 1 || (to.distance == bytes && from.distance == bytes);
  cuda_.check(dense ? cuda_.copy_async(to.first, from.first, bytes * count, CudaLibrary::kCopy, stream_)
                    : cuda_.copy_2d_async(to.first, to.distance, from.first, from.distance, bytes, count, CudaLibrary::kCopy, stream_),
              "copying " + std::to_string(bytes * count) + " bytes");
}

void CudaDevice::wait() {
  const Sharing lock(cuda_.calls());
  cuda_.check(cuda_.stream_synchronize(stream_), "what ran before");
}

}  // namespace layerweave
