#include "host_weights.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

#include "weight_file.h"

namespace layerweave {

namespace {

/** A line of the cache, and more than any kernel asks of a weight's address. */
constexpr size_t kAlignment = 64;
constexpr size_t kLargePage = size_t{2} << 20;

size_t aligned(size_t bytes, size_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

}  // namespace

void HostWeights::Unmapped::operator()(std::byte* memory) const noexcept { munmap(memory, bytes); }

HostWeights::HostWeights(const OrtLibrary& ort, const Device& device, const std::vector<WeightSpec>& weights, const Interruption& interruption) : ort_(ort), slab_(nullptr, Unmapped{0}) {
  size_t total = 0;
  for (const WeightSpec& weight : weights) total += aligned(weight.bytes, kAlignment);
  if (total == 0) return;
  // One large page more, so that the first begins at the border of one.
  const size_t reserved = total + kLargePage;
  void* memory = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory for " + std::to_string(total) + " bytes of weights: " + std::strerror(errno));
  slab_ = {static_cast<std::byte*>(memory), Unmapped{reserved}};
  std::byte* at = slab_.get() + (aligned(reinterpret_cast<uintptr_t>(memory), kLargePage) - reinterpret_cast<uintptr_t>(memory));
#ifdef MADV_HUGEPAGE
  // A request: where the system has no large pages, small ones do.
  madvise(at, total, MADV_HUGEPAGE);
#endif
  std::map<std::string, WeightFile> files;
  for (const WeightSpec& weight : weights) {
    if (interruption.requested()) throw std::runtime_error("loading was interrupted");
    files.try_emplace(weight.file, weight.file).first->second.read(at, weight.bytes, weight.offset);
    values_.push_back(wrap(ort, device, at, weight.bytes, weight.shape, weight.type));
    at += aligned(weight.bytes, kAlignment);
  }
}

void HostWeights::add_to(OrtSessionOptions* options, const std::vector<WeightSpec>& specs) const {
  for (size_t i = 0; i < specs.size(); i++) ort_.check(ort_.api().AddInitializer(options, specs[i].name.c_str(), values_[i].get()));
}

}  // namespace layerweave
