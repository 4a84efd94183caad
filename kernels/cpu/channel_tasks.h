#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>

#include "cpu/parallel.h"
#include "kernels.h"

namespace layerweave::cpu {

/// Calls body(row, begin, end) for tasks that cover the channels of every row of a batch. The wider a task, the longer the
/// pieces of memory it reads, up to a page; but there should be two for each core. Channels don't touch each other, so the
/// result does not depend on the cut.
template <class F>
void for_channels(const Parallel& parallel, int64_t batch, int64_t channels, int64_t most, F&& body) {
  constexpr int64_t kLine = 64;
  // Asked once: to answer, the C library reads a file.
  static const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t wanted = (batch * channels / (2 * cores) + kLine - 1) / kLine * kLine;
  const int64_t width = std::clamp<int64_t>(wanted, kLine, std::max(kLine, std::min(most, kMaxTaskChannels)));
  const int64_t tasks = (channels + width - 1) / width;
  parallel_for(parallel, batch * tasks, [&](int64_t task) {
    const int64_t begin = task % tasks * width;
    body(task / tasks, begin, std::min(channels, begin + width));
  });
}

}  // namespace layerweave::cpu
