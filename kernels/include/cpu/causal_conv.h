#pragma once

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace layerweave::cpu {

/// Depthwise causal convolution over time with carried state, then SiLU:
///
///   y[t,d] = silu(bias[d] + sum_k weight[d,k] * x[t - (K-1) + k, d])
///
/// where inputs before position 0 are the state, oldest first. The new state is the last K-1 inputs before lengths[b], the
/// old state standing in front. Element [b,t,d] of x and y lies at (b * tokens + t) * row_stride + d.
/// Positions t >= lengths[b] of y hold the convolution of whatever x holds there.
struct CausalConvParams {
  int64_t batch;     // B
  int64_t tokens;    // T
  int64_t channels;  // D
  int64_t kernel;    // K, 1..kCausalConvMaxKernel

  const float* x;  // [B,T,D]
  float* y;        // [B,T,D], not overlapping x
  int64_t x_row_stride;
  int64_t y_row_stride;

  const float* weight;     // [D,K]
  const float* bias;       // [D], or null
  const int64_t* lengths;  // [B], 0..T, or null for all = tokens

  const float* state_in;  // [B,D,K-1]
  float* state_out;       // [B,D,K-1], may be state_in
};

inline constexpr int64_t kCausalConvMaxKernel = 16;

/// Returns null, or what is wrong with the parameters; then nothing was written.
const char* causal_conv(const CausalConvParams& params, const Parallel& parallel, Isa isa);

}  // namespace layerweave::cpu
