#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace layerweave {

/// A residual sum and its RMS norm (Zhang & Sennrich 2019):
///
///   sum = x + residual                                     rounded to the dtype
///   y   = scale * sum / sqrt(mean(sum^2) + epsilon)        in float32, then rounded
struct ResidualNormParams {
  int64_t tokens;  // M, 1..2^26
  int64_t width;   // D, a multiple of 8, up to 2^20
  float epsilon;

  const void* x;         // [M,D]
  const void* residual;  // [M,D]
  const void* scale;     // [D]
  void* y;               // [M,D], overlapping nothing
  void* sum;             // [M,D], overlapping nothing
};

/// Enqueues one launch on `stream`; all tensors have the given dtype, bfloat16 or
/// float16, and are 16-byte aligned. Returns cudaErrorInvalidValue for anything
/// other than the above or a missing tensor, otherwise the launch's error.
cudaError_t residual_norm(const ResidualNormParams& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
