#pragma once

#include <vector>

#include "cuda_device.h"
#include "session.h"

namespace layerweave {

/**
 * A model's weights on a card, in one piece of its memory. Several threads read the files into page-locked buffers, from
 * which the card takes them, so that host memory stays bounded and disk and bus are busy at once.
 */
class DeviceWeights {
 public:
  /** @throws std::runtime_error when there is no memory, a file can't be read, or the load was interrupted */
  DeviceWeights(const OrtLibrary& ort, CudaDevice& device, const std::vector<WeightSpec>& weights, const Interruption& interruption, const Progress& progress);

  /** Gives them to a session that is about to be made; they must outlive it. */
  void add_to(OrtSessionOptions* options, const std::vector<WeightSpec>& specs) const;

  size_t bytes() const { return bytes_; }
  double seconds() const { return seconds_; }

 private:
  struct Released {
    CudaDevice* device;
    void operator()(std::byte* memory) const { device->release(memory); }
  };

  const OrtLibrary& ort_;
  size_t bytes_;
  std::unique_ptr<std::byte, Released> slab_;
  std::vector<OrtOwned<OrtValue>> values_;
  double seconds_ = 0;
};

}  // namespace layerweave
