#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace layerweave {

/// Depthwise causal convolution over time with carried state, then SiLU:
///
///   y[t,d] = silu(bias[d] + sum_k weight[d,k] * x[t - (K-1) + k, d])
///
/// where inputs before position 0 are the state, oldest first. The new state is
/// the last K-1 inputs before lengths[b], the old state standing in front.
/// Element [b,t,d] of x and y lies at (b * tokens + t) * row_stride + d.
/// Positions t >= lengths[b] of y hold the convolution of whatever x holds there.
struct CausalConvParams {
  int64_t batch;     // B, 1..65535
  int64_t tokens;    // T >= 1
  int64_t channels;  // D >= 1
  int64_t kernel;    // K, 2..4

  const void* x;  // [B,T,D]
  void* y;        // [B,T,D], not overlapping x
  int64_t x_row_stride;
  int64_t y_row_stride;

  const void* weight;      // [D,K]
  const void* bias;        // [D], or null
  const int64_t* lengths;  // [B] on the device, or null for all = tokens

  const void* state_in;  // [B,D,K-1]
  void* state_out;       // [B,D,K-1], may be state_in
};

/// Enqueues the convolution on `stream`; every tensor has the given dtype, sums
/// are float32. Returns cudaErrorInvalidValue for sizes outside the ranges above
/// or a missing tensor, otherwise the launch's error.
cudaError_t causal_conv(const CausalConvParams& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
