#include "host.h"

namespace layerweave::ort {

Scratch::Scratch(const Call& call, size_t bytes) : api_(call.api) {
  if (!bytes) return;
  OrtMemoryInfo* memory = nullptr;
  check(api_, api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  const std::unique_ptr<OrtMemoryInfo, void (*)(OrtMemoryInfo*)> owned(memory, api_.ReleaseMemoryInfo);
  check(api_, api_.KernelContext_GetAllocator(call.context, memory, &allocator_));
  if (OrtStatus* status = api_.AllocatorAlloc(allocator_, bytes, &data_)) {
    api_.ReleaseAllocator(allocator_);
    check(api_, status);
  }
}

Scratch::~Scratch() {
  if (!allocator_) return;
  if (OrtStatus* status = api_.AllocatorFree(allocator_, data_)) api_.ReleaseStatus(status);
  api_.ReleaseAllocator(allocator_);
}

cpu::Parallel parallel(const Call& call) {
  const auto run = [](void* self, cpu::Parallel::Body body, void* data, size_t count) {
    const Call& call = *static_cast<const Call*>(self);
    // As many batches as tasks: a thread takes the next one when it is done with one.
    check(call.api, call.api.KernelContext_ParallelFor(call.context, body, count, count, data));
  };
  return {run, const_cast<Call*>(&call)};
}

const std::vector<const Definition*>& definitions() {
  static const std::vector<const Definition*> all = {&cached_attention(), &causal_conv(), &gated_mlp(), &mamba_inner(), &moe(), &quantized_linear(), &selective_scan()};
  return all;
}

}  // namespace layerweave::ort
