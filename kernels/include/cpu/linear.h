#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "moe.h"
#include "parallel.h"

namespace layerweave::cpu {

/// A linear layer: y[m,n] = sum_k x[m,k] * w[n,k] + bias[n], the weights widened to float32 as they are read. They are read
/// once for up to kLinearSegmentRows rows of x.
struct LinearParams {
  int64_t rows;   // M
  int64_t depth;  // K, at least 1
  int64_t width;  // N

  const float* x;        // [M,K]
  WeightMatrix weights;  // [N,K]
  const float* bias;     // [N], or null
  float* y;              // [M,N], not overlapping x

  void* scratch;  // linear_scratch bytes, aligned to 64; null where that is 0
};

inline constexpr int64_t kLinearSegmentRows = 256;

size_t linear_scratch(const LinearParams& params);

void linear(const LinearParams& params, const Parallel& parallel, Isa isa);

}  // namespace layerweave::cpu
