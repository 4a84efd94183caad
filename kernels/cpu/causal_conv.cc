#include "cpu/causal_conv.h"

#include "channel_tasks.h"

namespace layerweave::cpu {

const char* causal_conv(const CausalConvParams& p, const Parallel& parallel, Isa isa) {
  if (p.kernel < 1 || p.kernel > kCausalConvMaxKernel) return "dConv must be 1 to 16";
  for (int64_t row = 0; p.lengths && row < p.batch; ++row)
    if (p.lengths[row] < 0 || p.lengths[row] > p.tokens) return "lengths must be 0 to T";
  const KernelTable& kernels = kernel_table(isa);
  for_channels(parallel, p.batch, p.channels, kMaxTaskChannels, [&](int64_t row, int64_t begin, int64_t end) { kernels.conv_channels(p, row, begin, end); });
  return nullptr;
}

}  // namespace layerweave::cpu
