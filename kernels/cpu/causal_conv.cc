#include "cpu/causal_conv.h"

#include <algorithm>

#include "kernels.h"

namespace layerweave::cpu {

const char* causal_conv(const CausalConvParams& p, const Parallel& parallel, Isa isa) {
  if (p.kernel < 1 || p.kernel > kCausalConvMaxKernel) return "dConv must be 1 to 16";
  for (int64_t row = 0; p.lengths && row < p.batch; ++row)
    if (p.lengths[row] < 0 || p.lengths[row] > p.tokens) return "lengths must be 0 to T";
  const KernelTable& kernels = kernel_table(isa);
  const int64_t blocks = (p.channels + kTaskChannels - 1) / kTaskChannels;
  parallel_for(parallel, p.batch * blocks, [&](int64_t task) {
    const int64_t begin = task % blocks * kTaskChannels;
    kernels.conv_channels(p, task / blocks, begin, std::min(p.channels, begin + kTaskChannels));
  });
  return nullptr;
}

}  // namespace layerweave::cpu
