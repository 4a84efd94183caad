#include "cpu/selective_scan.h"

#include "channel_tasks.h"

namespace layerweave::cpu {

const char* selective_scan(const SelectiveScanParams& p, const Parallel& parallel, Isa isa) {
  if (p.states < 1 || p.states > kSelectiveScanMaxStates) return "dState must be 1 to 128";
  for (int64_t row = 0; p.lengths && row < p.batch; ++row)
    if (p.lengths[row] < 0 || p.lengths[row] > p.tokens) return "lengths must be 0 to T";
  const KernelTable& kernels = kernel_table(isa);
  for_channels(parallel, p.batch, p.channels, kMaxTaskStates / p.states / 64 * 64, [&](int64_t row, int64_t begin, int64_t end) { kernels.scan_channels(p, row, begin, end); });
  return nullptr;
}

}  // namespace layerweave::cpu
