#pragma once

#include <layerweave_cuda.h>

#include <string>
#include <vector>

#include "cuda_device.h"

namespace layerweave {

/** What of the kernels' library chooses tokens. It stays until the process ends. */
class SamplerLibrary {
 public:
  /** @throws std::runtime_error saying what it lacks */
  explicit SamplerLibrary(const std::string& path);

  decltype(&layerweave_sample_workspace) workspace;
  decltype(&layerweave_seed_sampler) seed;
  decltype(&layerweave_sample) sample;
};

/** How the tokens of one row are chosen: the fields of LayerweaveSampleRow, and the seed below 2^53 that its state starts from. */
struct SampledRow {
  double temperature;
  double top_p;
  double min_p;
  int64_t top_k;
  uint64_t seed;
};

/** Chooses tokens of B rows from logits on the card, where the rows' random sequences go on from one choice to the next. */
class DeviceSampler {
 public:
  DeviceSampler(const SamplerLibrary& library, CudaDevice& device, const std::vector<SampledRow>& rows, int64_t vocab_size);

  size_t rows() const { return rows_; }
  /** On the card. */
  size_t bytes() const { return bytes_; }

  /** Enqueues the choice of a token of each row in `chosen` from logits [B, V] that earlier work of the stream computes; other rows draw nothing. */
  void choose(const float* logits, const std::vector<bool>& chosen);
  /** Waits for everything before. @returns tokens [B], of rows that were not chosen any; -1 where logits are not finite */
  std::vector<int64_t> receive();

 private:
  const SamplerLibrary& library_;
  CudaDevice& device_;
  const size_t rows_;
  const int64_t vocab_size_;
  const size_t workspace_per_row_;
  const size_t bytes_;
  /** LayerweaveSampleRow [B], tokens [B] and the workspace, one after another. */
  const DeviceMemory memory_;
  const PinnedMemory received_;
};

}  // namespace layerweave
