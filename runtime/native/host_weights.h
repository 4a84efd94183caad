#pragma once

#include <memory>
#include <vector>

#include "device.h"
#include "session.h"

namespace layerweave {

/**
 * Copies of weights in large pages. A token reads few of a model's experts, others than the last one read; in a mapped file every
 * 4 KB of them may need an entry of the page table that isn't in any cache, or under a hypervisor isn't there yet.
 */
class HostWeights {
 public:
  /** @throws std::runtime_error when there is no memory, a file can't be read, or the load was interrupted */
  HostWeights(const OrtLibrary& ort, const Device& device, const std::vector<WeightSpec>& weights, const Interruption& interruption);

  /** Gives them to a session that is about to be made; they must outlive it. */
  void add_to(OrtSessionOptions* options, const std::vector<WeightSpec>& specs) const;

 private:
  struct Unmapped {
    size_t bytes;
    void operator()(std::byte* memory) const noexcept;
  };

  const OrtLibrary& ort_;
  std::unique_ptr<std::byte, Unmapped> slab_;
  std::vector<OrtOwned<OrtValue>> values_;
};

}  // namespace layerweave
