#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace layerweave::cpu {

/// A linear layer with int8 weights: y[m,n] = scales[n] * sum_k x[m,k] * w[n,k] + bias[n]. Activations are rounded to 16 bits, 256
/// inputs of a row sharing a scale, and the products of such a block summed exactly: y is off by at most
/// sum_k |scales[n] * w[n,k]| * max |x[m, block of k]| / 65534, beside float32's rounding of a sum of blocks. A row of x with a
/// number that is not finite gives NaN. The weights are read once for up to kLinearSegmentRows rows of x.
struct LinearParams {
  int64_t rows;   // M
  int64_t depth;  // K, at least 1
  int64_t width;  // N

  const float* x;         // [M,K]
  const int8_t* weights;  // [N,K]
  const float* scales;    // [N]
  const float* bias;      // [N], or null
  float* y;               // [M,N], not overlapping x

  void* scratch;  // linear_scratch bytes, aligned to 64
};

inline constexpr int64_t kLinearSegmentRows = 256;

size_t linear_scratch(const LinearParams& params);

void linear(const LinearParams& params, const Parallel& parallel, Isa isa);

}  // namespace layerweave::cpu
