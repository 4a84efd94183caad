#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace layerweave {

/// Mamba-1 selective scan (Gu & Dao 2023, section 3.2, zero-order hold on A
/// and Euler on B as in the reference implementation), with carried state:
///
///   delta[t,d] = softplus(delta_raw[t,d] + delta_bias[d])
///   h[d,n]     = exp(delta[t,d] * A[d,n]) * h[d,n] + delta[t,d] * B[t,n] * u[t,d]
///   y[t,d]     = (sum_n C[t,n] * h[d,n] + D[d] * u[t,d]) * silu(z[t,d])
///
/// with A = -exp(A_log). Activations have the launch's DType; the recurrence
/// runs in float32. Tensors are token-major, and element [b,t,i] of one lies at
/// (b * tokens + t) * row_stride + i, so that slices of a projection's output
/// are read where they are. Strides count elements.
///
/// At positions t >= lengths[b] delta is taken as 0: the state is unchanged
/// whatever the other inputs hold there, and y is the frozen state's output.
struct SelectiveScanParams {
  int64_t batch;     // B, 1..65535
  int64_t tokens;    // T, 1..kSelectiveScanMaxTokens
  int64_t channels;  // D >= 1
  int64_t states;    // N, 1..kSelectiveScanMaxStates

  const void* u;      // [B,T,D]
  const void* delta;  // [B,T,D], before bias and softplus
  const void* b;      // [B,T,N]
  const void* c;      // [B,T,N]
  const void* z;      // [B,T,D], or null for no gate
  void* y;            // [B,T,D], may be delta, with its stride
  int64_t u_row_stride;
  int64_t delta_row_stride;
  int64_t b_row_stride;
  int64_t c_row_stride;
  int64_t z_row_stride;
  int64_t y_row_stride;

  const float* a_log;       // [D,N]
  const float* d_skip;      // [D]
  const float* delta_bias;  // [D], or null for no bias
  const int64_t* lengths;   // [B] on the device, or null for all = tokens

  const float* state_in;  // [B,D,N]
  float* state_out;       // [B,D,N], may be state_in
};

inline constexpr int64_t kSelectiveScanMaxStates = 128;
inline constexpr int64_t kSelectiveScanMaxTokens = int64_t{1} << 30;

/// Enqueues the scan on `stream`. Returns cudaErrorInvalidValue for sizes
/// outside the ranges above or a missing tensor, otherwise the launch's error.
/// Rows aligned to 16 bytes with `channels` (and `states`, for b and c) a
/// multiple of 8 take the vectorised path; any other layout is correct, slower.
cudaError_t selective_scan(const SelectiveScanParams& params, DType dtype, cudaStream_t stream);

}  // namespace layerweave
